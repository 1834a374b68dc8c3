"""The three views that ranking reads.

`topic` is the post's first tag, empty where it has none, null in rows from before it was kept.
`*_json` is a unit vector of 384 float32 numbers as a JSON array. A post that is no more has
the author 0; a pair that is no more has an affinity of 0. What never was has null everywhere.

`post_stats.author_id` has the name of the entity `author`'s join key: ask with full feature names.
"""

from datetime import timedelta

from feast import FeatureView, Field
from feast.types import Bool, Float64, Int64, String

import sources
from entities import author, post, user

user_stats = FeatureView(
    name="user_stats",
    entities=[user],
    ttl=timedelta(days=60),
    schema=[
        Field(name="user_id", dtype=Int64),
        Field(name="follower_count", dtype=Int64),
        Field(name="avg_engagement_rate", dtype=Float64),
        Field(name="interest_vector_json", dtype=String),
    ],
    source=sources.user_stats,
)

post_stats = FeatureView(
    name="post_stats",
    entities=[post],
    # Longer than discovery looks back (FEED_DISCOVERY_DAYS).
    ttl=timedelta(days=35),
    schema=[
        Field(name="post_id", dtype=Int64),
        Field(name="like_count", dtype=Int64),
        Field(name="has_media", dtype=Bool),
        Field(name="author_id", dtype=Int64),
        Field(name="embedding_json", dtype=String),
        Field(name="topic", dtype=String),
    ],
    source=sources.post_stats,
)

user_author_affinity = FeatureView(
    name="user_author_affinity",
    entities=[user, author],
    ttl=timedelta(days=60),
    schema=[
        Field(name="user_id", dtype=Int64),
        Field(name="author_id", dtype=Int64),
        Field(name="affinity_score", dtype=Float64),
    ],
    source=sources.user_author_affinity,
)
