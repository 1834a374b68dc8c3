"""Examples with a pattern that is known: who likes what, and how often."""

import numpy as np

from ranker_svc.features import CATEGORICAL, COLUMN, DENSE, Features
from training.examples import Examples

_DAY_MS = 86_400_000
_PER_FEED = 20


def examples(rows: int, days: int = 10, seed: int = 0, readers: int = 60) -> Examples:
    """Showings of which likes depend on reader times author, which no sum of both can tell.

    Each reader and each author is of one of two camps, and likes their own. Besides, the newer and
    the better known posts are liked more. Dwell is unknown for a third.
    """
    random = np.random.default_rng(seed)
    feeds = -(-rows // _PER_FEED)
    feed = np.repeat(np.arange(feeds), _PER_FEED)[:rows]
    reader = random.integers(1, readers + 1, feeds)[feed]
    author = random.integers(1001, 1041, rows)
    shown_at_ms = np.sort(random.integers(0, days * _DAY_MS, feeds))[feed]
    dense = np.zeros((rows, len(DENSE)), np.float32)
    dense[:, COLUMN["age_hours"]] = random.exponential(12, rows)
    dense[:, COLUMN["like_count"]] = np.floor(random.lognormal(2, 1.5, rows))
    dense[:, COLUMN["topic_similarity"]] = random.uniform(-1, 1, rows)
    dense[:, COLUMN["reader_follower_count"]] = reader * 10
    ids = np.zeros((rows, len(CATEGORICAL)), np.int64)
    ids[:, 0], ids[:, 1] = reader, author
    ids[:, 2] = random.integers(10**9, 10**9 + 24, rows)
    ids[:, 3] = random.integers(1, 5, rows)
    ids[:, 4] = shown_at_ms // 3_600_000 % 24
    camp = np.where(reader % 2 == author % 2, 1.5, -1.5)
    logit = -1.5 + camp - dense[:, COLUMN["age_hours"]] / 24
    logit += 0.3 * np.log1p(dense[:, COLUMN["like_count"]]) - 0.6
    like = random.random(rows) < 1 / (1 + np.exp(-logit))
    dwell = (random.random(rows) < 1 / (1 + np.exp(-logit - 1))).astype(np.float32)
    dwell[random.random(rows) < 1 / 3] = np.nan
    return Examples(
        features=Features(dense, ids),
        like=like.astype(np.float32),
        long_dwell=dwell,
        shown_at_ms=shown_at_ms,
        post=random.integers(1, 10**6, rows),
        feed=feed,
        position=(np.arange(rows) % _PER_FEED).astype(np.int32),
        score=random.random(rows).astype(np.float32),
        propensity=np.full(rows, 0.955, np.float32),
    )
