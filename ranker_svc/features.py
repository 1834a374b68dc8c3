"""What a model knows of each candidate: the feature matrix."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from feed.v1.common_pb2 import (
    CANDIDATE_SOURCE_DISCOVERY,
    CANDIDATE_SOURCE_EXPLORATION,
    CANDIDATE_SOURCE_POPULAR,
    CANDIDATE_SOURCE_SOCIAL,
    CandidateSource,
)
from numpy.typing import NDArray

from mesh import deadlines
from mesh.degrade import best_effort
from mesh.ids import created_ms
from mesh.packing import Vector
from ranker_svc.recent_posts import RecentPosts
from stores.features.port import FeatureStore, PostFeatures

# The columns of numbers, as they are: a model that wants them otherwise does that itself.
DENSE = (
    "affinity",  # 0 to 1, how often the reader engaged with the author; null: 0
    "topic_similarity",  # cosine of the interest and the post's vector, -1 to 1; null: 0
    "age_hours",  # since the post was created, from its id; 0 or more
    "like_count",  # null: 0
    "viewer_count",  # unique readers who were shown the post; null: 0
    "engagement_rate",  # likes per viewer, smoothed, 0 to 1; null: the prior, 0.05
    "has_media",  # 0 or 1; null: 0
    "reader_follower_count",
    "reader_avg_engagement_rate",  # 0 to 1
    "source_social",  # 1 for the source the candidate came from, else 0
    "source_discovery",
    "source_popular",
    "source_exploration",
)
COLUMN = {name: column for column, name in enumerate(DENSE)}
# The columns of ids, 0 where there is none; a model hashes them as it says (scorers/contract.py).
CATEGORICAL = (
    "reader",  # user id
    "author",  # user id
    "topic",  # `topic_id` of the post's first tag
    "source",  # number of the CandidateSource
    "hour",  # UTC hour of the request, 0 to 23
)
# A post is taken to have 5 likes of 100 viewers until it has shown otherwise.
PRIOR_RATE = 0.05
_PRIOR_VIEWERS = 100.0
_MS_PER_HOUR = 3_600_000
_SOURCES = {
    CANDIDATE_SOURCE_SOCIAL: COLUMN["source_social"],
    CANDIDATE_SOURCE_DISCOVERY: COLUMN["source_discovery"],
    CANDIDATE_SOURCE_POPULAR: COLUMN["source_popular"],
    CANDIDATE_SOURCE_EXPLORATION: COLUMN["source_exploration"],
}
_TIMEOUT_S = 0.5

Matrix = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Features:
    """What a model may know of n candidates.

    Args:
        dense: Numbers, float32 of shape (n, len(DENSE)), all finite.
        ids: Ids, int64 of shape (n, len(CATEGORICAL)).
    """

    dense: Matrix
    ids: Ids

    def __len__(self) -> int:
        return len(self.dense)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is read for, and what: all that the request itself tells.

    Args:
        reader_id: The reader.
        interest: Unit vector of shape (384,); None without history.
        follower_count: The reader's.
        avg_engagement_rate: Likes per viewer over the reader's own posts, 0 to 1.
        post_ids: The candidates.
        author_ids: Their authors.
        sources: Where they came from.
    """

    reader_id: int
    interest: Vector | None
    follower_count: int
    avg_engagement_rate: float
    post_ids: Sequence[int]
    author_ids: Sequence[int]
    sources: Sequence[CandidateSource.ValueType]


@dataclass(frozen=True, slots=True)
class Known:
    """What the feature store tells of the candidates, in their order."""

    posts: Sequence[PostFeatures | None]
    affinities: Sequence[float]
    # How many of the posts were looked up a moment ago, by another request perhaps.
    recent: int = 0


async def fetch(
    store: FeatureStore, recent_posts: RecentPosts, subject: Subject, degraded: list[str]
) -> Known:
    """Post features and affinities; null values, and "features" in `degraded`, when away."""
    count = len(subject.post_ids)
    # The other half of what is left is the model's.
    timeout_s = deadlines.remaining(_TIMEOUT_S) / 2
    recent = recent_posts.of(subject.post_ids)
    missing = [post_id for post_id in subject.post_ids if post_id not in recent]
    nothing: list[PostFeatures | None] = [None] * len(missing)
    looked_up, affinities = await asyncio.gather(
        best_effort(
            store.posts(missing),
            nothing,
            backend="features",
            degraded=degraded,
            timeout_s=timeout_s,
        ),
        best_effort(
            store.affinities(subject.reader_id, subject.author_ids),
            [0.0] * count,
            backend="features",
            degraded=degraded,
            timeout_s=timeout_s,
        ),
    )
    recent_posts.keep(missing, looked_up)
    found = recent | dict(zip(missing, looked_up, strict=True))
    posts = [found[post_id] for post_id in subject.post_ids]
    return Known(posts, affinities, len(recent))


def build(subject: Subject, known: Known, now_ms: int) -> Features:
    """The features, one row a candidate. Pure."""
    return Features(_dense(subject, known, now_ms), _ids(subject, known, now_ms))


@lru_cache(maxsize=10_000)
def topic_id(topic: str) -> int:
    """A number above 0 that stands for the topic, the same everywhere; 0 for no topic."""
    if not topic:
        return 0
    # 63 bits: an id is never negative.
    return int.from_bytes(hashlib.blake2b(topic.encode(), digest_size=8).digest()) >> 1 or 1


def _ids(subject: Subject, known: Known, now_ms: int) -> Ids:
    ids = np.zeros((len(subject.post_ids), len(CATEGORICAL)), np.int64)
    ids[:, 0] = subject.reader_id
    ids[:, 1] = subject.author_ids
    ids[:, 2] = [topic_id(post.topic) if post is not None else 0 for post in known.posts]
    ids[:, 3] = subject.sources
    ids[:, 4] = now_ms // _MS_PER_HOUR % 24
    return ids


def _dense(subject: Subject, known: Known, now_ms: int) -> Matrix:
    matrix = np.zeros((len(subject.post_ids), len(DENSE)), np.float32)
    if not len(matrix):
        return matrix
    matrix[:, COLUMN["affinity"]] = known.affinities
    matrix[:, COLUMN["topic_similarity"]] = similarities(subject.interest, known.posts)
    matrix[:, COLUMN["age_hours"]] = [
        max(now_ms - created_ms(post_id), 0) / _MS_PER_HOUR for post_id in subject.post_ids
    ]
    likes, viewers, media = _stats(known.posts)
    matrix[:, COLUMN["like_count"]] = likes
    matrix[:, COLUMN["viewer_count"]] = viewers
    matrix[:, COLUMN["engagement_rate"]] = engagement_rate(likes, viewers)
    matrix[:, COLUMN["has_media"]] = media
    matrix[:, COLUMN["reader_follower_count"]] = subject.follower_count
    matrix[:, COLUMN["reader_avg_engagement_rate"]] = subject.avg_engagement_rate
    for row, source in enumerate(subject.sources):
        if source in _SOURCES:
            matrix[row, _SOURCES[source]] = 1
    return np.nan_to_num(matrix, copy=False)


def similarities(
    interest: Vector | None, posts: Sequence[PostFeatures | None]
) -> NDArray[np.float32]:
    """Cosine of the interest and each post's vector, shape (n,); 0 where a vector is missing."""
    cosines = np.zeros(len(posts), np.float32)
    embeddings = [
        (row, post.embedding)
        for row, post in enumerate(posts)
        if post is not None and post.embedding is not None
    ]
    if interest is None or not embeddings:
        return cosines
    stacked = np.stack([embedding for _, embedding in embeddings])
    lengths = np.linalg.norm(stacked, axis=1) * np.linalg.norm(interest)
    products = stacked @ interest
    rows = [row for row, _ in embeddings]
    cosines[rows] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return np.clip(np.nan_to_num(cosines), -1, 1)


def engagement_rate(likes: NDArray[np.float64], viewers: NDArray[np.float64]) -> Matrix:
    """Likes per viewer, drawn towards `PRIOR_RATE` by as much as 100 viewers would; 0 to 1."""
    rate = (likes + PRIOR_RATE * _PRIOR_VIEWERS) / (viewers + _PRIOR_VIEWERS)
    return np.clip(rate, 0, 1).astype(np.float32)


def _stats(posts: Sequence[PostFeatures | None]) -> NDArray[np.float64]:
    """Rows of like counts, viewer counts and having media, shape (3, n)."""
    return np.array(
        [
            (post.like_count, post.viewer_count, post.has_media) if post is not None else (0, 0, 0)
            for post in posts
        ],
        np.float64,
    ).T
