"""How much a post or an author is liked, as one number. Pure."""

import math
from datetime import datetime

# A tenfold of likes is worth this many seconds of freshness, half a day.
_SECONDS_PER_TENFOLD = 45_000
# An author nobody knows yet is taken to get one like from twenty readers.
_PRIOR_LIKES, _PRIOR_VIEWERS = 1, 20


def hotness(like_count: int, created_at: datetime) -> float:
    """A post's place among the popular: log10(1 + likes) + seconds of creation / 45,000.

    It never changes by time alone, so that only a post whose likes change is written again: newer
    posts overtake older ones by being created later.
    """
    return math.log10(1 + max(like_count, 0)) + created_at.timestamp() / _SECONDS_PER_TENFOLD


def engagement_rate(like_count: int, viewer_count: int) -> float:
    """Likes per unique viewer, 0 to 1, drawn towards 1 in 20 while there were few viewers."""
    return min((like_count + _PRIOR_LIKES) / (viewer_count + _PRIOR_VIEWERS), 1.0)
