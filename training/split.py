"""Training, validation and test: by days, so that nobody learns from what came later."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from training.examples import Examples

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Split:
    """The earliest days, those after them, and the last ones."""

    train: Examples
    validation: Examples
    test: Examples


def by_days(examples: Examples) -> Split:
    """A fifth of the days for the test, a tenth for validation; at least one day each.

    Raises:
        ValueError: There are less than three days.
    """
    day = examples.shown_at_ms // _DAY_MS
    days = np.unique(day)
    if len(days) < 3:
        raise ValueError(f"{len(days)} days are too few: training, validation and test need three")
    tests = max(1, round(len(days) / 5))
    validations = max(1, round(len(days) / 10))
    first_test, first_validation = days[-tests], days[-tests - validations]
    return Split(
        examples.at(day < first_validation),
        examples.at((day >= first_validation) & (day < first_test)),
        examples.at(day >= first_test),
    )


def day(ms: int) -> str:
    """The UTC day of milliseconds since the epoch: 2026-01-31."""
    return datetime.fromtimestamp(ms / 1000, UTC).date().isoformat()
