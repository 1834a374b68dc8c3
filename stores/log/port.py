"""The log of feeds: what was served, shown and liked, for training and judging models."""

from collections.abc import Sequence
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    # Only workers and training load it.
    import pyarrow as pa


class Kind(StrEnum):
    """What a row tells of."""

    SERVED = "served"
    IMPRESSIONS = "impressions"
    ENGAGEMENTS = "engagements"


class FeedLog(Protocol):
    """Appended to at least once, read exactly once. Days are UTC days of the rows' times.

    Raises `mesh.errors.Unavailable` when it cannot be reached.
    """

    async def append(self, kind: Kind, rows: "pa.Table") -> None:
        """Adds rows; durable, and all there, when it returns.

        All rows of one event come in one call. Raises `ValueError` when they have other columns
        than `stores.log.schemas` says.
        """
        ...

    async def compact(self, before: date) -> int:
        """Makes one file without repeats of each earlier day's many; how many files that joined.

        Not to be run twice at once. Appending and reading may go on meanwhile.
        """
        ...

    async def forget(self, before: date) -> int:
        """Forgets all earlier days; how many."""
        ...

    def days(self, kind: Kind) -> list[date]:
        """The days that there are, in order. Blocks."""
        ...

    def read(
        self,
        kind: Kind,
        first: date | None = None,
        last: date | None = None,
        columns: Sequence[str] | None = None,
    ) -> "pa.Table":
        """Rows of the days from `first` to `last`, each once. Blocks: for jobs, not for services.

        Args:
            kind: Which.
            first: The earliest day; None for the earliest there is.
            last: The latest day, itself included; None for the latest there is.
            columns: Only these.
        """
        ...
