"""Nobody learns from what came later."""

import pytest

from tests.training import planted
from training.split import by_days


@pytest.mark.parametrize("days", [3, 7, 10, 30])
def test_each_part_ends_before_the_next_begins(days: int) -> None:
    examples = planted.examples(5_000, days=days)
    split = by_days(examples)
    assert split.train.shown_at_ms.max() < split.validation.shown_at_ms.min()
    assert split.validation.shown_at_ms.max() < split.test.shown_at_ms.min()
    assert len(split.train) + len(split.validation) + len(split.test) == len(examples)


def test_two_days_are_too_few() -> None:
    with pytest.raises(ValueError, match="2 days are too few"):
        by_days(planted.examples(100, days=2))
