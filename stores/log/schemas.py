"""What the log of feeds has in its rows. Readers rely on these names and types."""

from collections.abc import Mapping

import pyarrow as pa

from stores.log.port import Kind

# The numbers that the ranker knew of a post, as its model was given them (ranker_svc.features).
DENSE = (
    "affinity",
    "topic_similarity",
    "age_hours",
    "like_count",
    "viewer_count",
    "engagement_rate",
    "has_media",
    "reader_follower_count",
    "reader_avg_engagement_rate",
    "source_social",
    "source_discovery",
    "source_popular",
    "source_exploration",
)


_TIME = pa.timestamp("ms", tz="UTC")

SCHEMAS: Mapping[Kind, pa.Schema] = {
    # One row for each place of a feed, the whole order. Features are null where the ranker was
    # away.
    Kind.SERVED: pa.schema(
        [
            ("event_id", pa.string()),
            ("feed_id", pa.string()),
            ("user_id", pa.int64()),
            ("served_at", _TIME),
            ("model_version", pa.string()),
            ("position", pa.int32()),
            ("post_id", pa.int64()),
            ("author_id", pa.int64()),
            ("score", pa.float32()),
            # How likely the post was at this place, given the places before it.
            ("propensity", pa.float32()),
            # The posts this place was drawn from, best score first; empty where nothing was drawn.
            ("pool", pa.list_(pa.int64())),
            *((name, pa.float32()) for name in DENSE),
            ("topic", pa.int64()),
            # Number of the CandidateSource.
            ("source", pa.int32()),
            # UTC hour of the request, 0 to 23.
            ("hour", pa.int32()),
        ]
    ),
    Kind.IMPRESSIONS: pa.schema(
        [
            ("event_id", pa.string()),
            ("user_id", pa.int64()),
            ("post_id", pa.int64()),
            ("author_id", pa.int64()),
            ("seen_at", _TIME),
            # Null when the client did not say, as dwell_ms; feed_id is empty then.
            ("position", pa.int32()),
            ("feed_id", pa.string()),
            ("dwell_ms", pa.int32()),
        ]
    ),
    Kind.ENGAGEMENTS: pa.schema(
        [
            ("event_id", pa.string()),
            ("user_id", pa.int64()),
            ("post_id", pa.int64()),
            ("author_id", pa.int64()),
            # "like" or "unlike".
            ("action", pa.string()),
            ("at", _TIME),
        ]
    ),
}

# When it happened; its UTC day says which folder a row is in.
TIME: Mapping[Kind, str] = {
    Kind.SERVED: "served_at",
    Kind.IMPRESSIONS: "seen_at",
    Kind.ENGAGEMENTS: "at",
}

# What tells a row from every other; rows with the same are repeats.
KEY: Mapping[Kind, tuple[str, ...]] = {
    Kind.SERVED: ("event_id", "position"),
    Kind.IMPRESSIONS: ("event_id",),
    Kind.ENGAGEMENTS: ("event_id",),
}
