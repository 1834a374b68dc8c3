"""heuristic://: a formula, which needs nothing and so is the fallback of every model."""

import numpy as np
from numpy.typing import NDArray

from ranker_svc.features import COLUMN, PRIOR_RATE, Matrix

VERSION = "heuristic/1"
_RECENCY_HALVES_H = 24.0


def score(dense: Matrix) -> NDArray[np.float32]:
    """A weighted mean of six values from 0 to 1, shape (n,).

    | weight | value |
    |---|---|
    | 0.25 | affinity to the author |
    | 0.25 | topic similarity, 0 where negative |
    | 0.20 | recency: 1 when new, half after 24 hours |
    | 0.15 | engagement: rate / (rate + 0.05), so half for a post with the usual rate |
    | 0.10 | followed: 1 for a social candidate |
    | 0.05 | has media |
    """
    rate = dense[:, COLUMN["engagement_rate"]]
    recency = np.exp2(-dense[:, COLUMN["age_hours"]] / _RECENCY_HALVES_H)
    total: NDArray[np.float32] = (
        0.25 * dense[:, COLUMN["affinity"]]
        + 0.25 * np.maximum(dense[:, COLUMN["topic_similarity"]], 0)
        + 0.20 * recency
        + 0.15 * rate / (rate + PRIOR_RATE)
        + 0.10 * dense[:, COLUMN["source_social"]]
        + 0.05 * dense[:, COLUMN["has_media"]]
    )
    return total
