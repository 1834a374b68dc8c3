"""What the reader saw lately: the long memory and the short one, read as one."""

import asyncio
from collections.abc import Iterable

from mesh import deadlines
from mesh.degrade import best_effort
from stores.impressions.port import ImpressionStore, RecentSeen, Seen

# More than a person scrolls in a day; the latest are the ones that count.
MAX_SEEN = 5_000
_TIMEOUT_S = 0.5


async def list_seen(
    impressions: ImpressionStore,
    recent: RecentSeen,
    *,
    reader_id: int,
    since_ms: int,
    degraded: list[str],
) -> list[Seen]:
    """What the reader saw since `since_ms`, by whichever memory answers in time.

    Args:
        impressions: The long memory.
        recent: The short one, which has what the long one has not taken in yet.
        reader_id: Who saw.
        since_ms: Start of the window, milliseconds since the epoch.
        degraded: Receives "impressions" and "recent_seen", where away.
    """
    # An answer just before the deadline would come too late to be sent.
    timeout_s = deadlines.remaining(_TIMEOUT_S) * 0.8
    long, short = await asyncio.gather(
        best_effort(
            impressions.seen(reader_id, since_ms, MAX_SEEN),
            [],
            backend="impressions",
            degraded=degraded,
            timeout_s=timeout_s,
        ),
        best_effort(
            recent.seen(reader_id),
            [],
            backend="recent_seen",
            degraded=degraded,
            timeout_s=timeout_s,
        ),
    )
    return [each for each in merge(long, short) if each.last_seen_ms >= since_ms]


def merge(*memories: Iterable[Seen]) -> list[Seen]:
    """One entry a post: the greatest count and the latest time that any memory has.

    Counts are not added up, because one showing may be in several memories.
    """
    merged: dict[int, Seen] = {}
    for memory in memories:
        for each in memory:
            known = merged.get(each.post_id, each)
            merged[each.post_id] = Seen(
                each.post_id,
                max(each.count, known.count),
                max(each.last_seen_ms, known.last_seen_ms),
            )
    return list(merged.values())
