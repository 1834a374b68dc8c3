"""Snowflake ids: 63 bits that order by time.

41 bits of milliseconds since 2020-01-01, 10 bits of worker, 12 bits of sequence.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from mesh.errors import Unavailable

EPOCH_MS = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp() * 1000)
WORKERS = 1 << 10
_SEQUENCES = 1 << 12
_SHIFT = 22
MAX_ID = (1 << 63) - 1


def now_ms() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class Snowflakes:
    """Makes ids that are unique among all workers and only grow within one.

    When the clock steps back, ids go on from the last one's millisecond instead of repeating: the
    sequence then runs ahead into the following milliseconds until the clock has caught up.

    Args:
        worker_id: 0 to 1023, leased so that no two live processes share it.
        clock_ms: The time in milliseconds since the Unix epoch.
        from_ms: Ids are never of an earlier time than this.
        until_ms: From this time on there are no ids; None sets no end.
    """

    def __init__(
        self,
        worker_id: int,
        clock_ms: Callable[[], int] = now_ms,
        *,
        from_ms: int = EPOCH_MS,
        until_ms: int | None = None,
    ) -> None:
        self._clock_ms = clock_ms
        # The last id's time, in milliseconds since EPOCH_MS, and its sequence; -1 for none there.
        self._ms = 0
        self._sequence = -1
        self.allow(worker_id, from_ms, until_ms)

    def allow(self, worker_id: int, from_ms: int, until_ms: int | None) -> None:
        """From now on makes ids as that worker, within those times and above every earlier id."""
        if not 0 <= worker_id < WORKERS:
            raise ValueError(f"worker_id {worker_id} is not in 0..{WORKERS - 1}")
        self._worker_id = worker_id
        self._until_ms = until_ms
        if from_ms - EPOCH_MS > self._ms:
            self._ms, self._sequence = from_ms - EPOCH_MS, -1

    def next(self) -> int:
        """A new id. Raises `Unavailable` when its time would be `until_ms` or later."""
        now = self._clock_ms() - EPOCH_MS
        ms, sequence = (now, 0) if now > self._ms else (self._ms, self._sequence + 1)
        if sequence == _SEQUENCES:
            ms, sequence = ms + 1, 0
        if self._until_ms is not None and ms + EPOCH_MS >= self._until_ms:
            raise Unavailable("No id can be made at the moment.", retry_after_s=1.0)
        self._ms, self._sequence = ms, sequence
        return ms << _SHIFT | self._worker_id << 12 | sequence


def created_ms(snowflake: int) -> int:
    """When the id was made, in milliseconds since the Unix epoch."""
    return (snowflake >> _SHIFT) + EPOCH_MS


def first_id_at(ms: int) -> int:
    """The smallest id that could have been made at that time."""
    return max(ms - EPOCH_MS, 0) << _SHIFT
