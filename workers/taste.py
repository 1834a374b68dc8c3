"""What a reader likes, from what they did. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from mesh.packing import Vector
from stores.impressions.port import Impression
from stores.posts.port import Engagement

LIKE_WEIGHT = 1.0
DWELL_WEIGHT = 0.3
# A mean shorter than this is what opposite interests leave, and points nowhere in particular.
_LEAST_LENGTH = 1e-6


def taste(
    engagements: Sequence[Engagement],
    dwells: Sequence[Impression],
    embeddings: Mapping[int, Vector],
    now: datetime,
    half_life: timedelta,
) -> tuple[Vector | None, dict[int, float]]:
    """A reader's interest vector, and their affinity to each author.

    A like weighs 1, a long look at a post 0.3 however often it was looked at, and both halve every
    `half_life`. The interest vector is the weighted mean of the posts' embeddings, scaled to length
    1; the affinity to an author is 1 - exp(-sum of the weights of their posts).

    Args:
        engagements: The reader's likes.
        dwells: Impressions that stayed on screen for long.
        embeddings: Unit vectors of shape (384,) by post id; a post without one has no part in the
            interest vector, only in the affinity.
        now: When the weights are taken.
        half_life: Above zero.

    Returns:
        The unit vector of shape (384,), None without embedded posts; and affinities between 0 and
        1 by author id.
    """
    by_post: dict[int, float] = defaultdict(float)
    by_author: dict[int, float] = defaultdict(float)
    for post_id, author_id, at, weight in _signals(engagements, dwells):
        decayed = weight * 0.5 ** (max(now - at, timedelta()) / half_life)
        by_post[post_id] += decayed
        by_author[author_id] += decayed
    affinities = {author: -math.expm1(-total) for author, total in by_author.items()}
    known = [post_id for post_id in by_post if post_id in embeddings]
    weights = np.array([by_post[post_id] for post_id in known])
    return _mean_direction(weights, [embeddings[post_id] for post_id in known]), affinities


def _signals(
    engagements: Sequence[Engagement], dwells: Sequence[Impression]
) -> Iterator[tuple[int, int, datetime, float]]:
    """(post_id, author_id, when, weight) of each liked and of each looked-at post."""
    for like in engagements:
        yield like.post_id, like.author_id, like.at, LIKE_WEIGHT
    latest = {d.post_id: d for d in sorted(dwells, key=lambda d: d.seen_at_ms)}
    for dwell in latest.values():
        at = datetime.fromtimestamp(dwell.seen_at_ms / 1000, UTC)
        yield dwell.post_id, dwell.author_id, at, DWELL_WEIGHT


def _mean_direction(weights: NDArray[np.float64], vectors: Sequence[Vector]) -> Vector | None:
    total = weights.sum()
    if total == 0:
        return None
    mean = (weights / total) @ np.stack(vectors)
    length = np.linalg.norm(mean)
    return None if length < _LEAST_LENGTH else (mean / length).astype(np.float32)
