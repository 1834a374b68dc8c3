"""Snowflake ids: 63 bits that order by time.

41 bits of milliseconds since 2020-01-01, 10 bits of worker, 12 bits of sequence.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

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
    """

    def __init__(self, worker_id: int, clock_ms: Callable[[], int] = now_ms) -> None:
        if not 0 <= worker_id < WORKERS:
            raise ValueError(f"worker_id {worker_id} is not in 0..{WORKERS - 1}")
        self._worker_id = worker_id
        self._clock_ms = clock_ms
        self._ms = 0
        self._sequence = 0

    def next(self) -> int:
        """A new id."""
        now = self._clock_ms() - EPOCH_MS
        if now > self._ms:
            self._ms, self._sequence = now, 0
        else:
            self._sequence += 1
            if self._sequence == _SEQUENCES:
                self._ms, self._sequence = self._ms + 1, 0
        return self._ms << _SHIFT | self._worker_id << 12 | self._sequence


def created_ms(snowflake: int) -> int:
    """When the id was made, in milliseconds since the Unix epoch."""
    return (snowflake >> _SHIFT) + EPOCH_MS


def first_id_at(ms: int) -> int:
    """The smallest id that could have been made at that time."""
    return max(ms - EPOCH_MS, 0) << _SHIFT
