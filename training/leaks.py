"""Whether examples know what was not known yet when the feed was served. Pure."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ranker_svc.features import DENSE
from training.examples import Examples
from training.labels import Ints

# One feature alone tells no like from none as well as this (AUC), unless it was made of them.
IMPLAUSIBLE_AUC = 0.95
# With fewer of either, chance alone may tell them apart.
_ENOUGH = 50


def leaks(examples: Examples, served_ms: Ints, written_ms: Ints) -> Iterator[str]:
    """What is wrong, in a sentence each.

    Two rules: no joined value was written after its feed was served; and no feature, by itself,
    orders the showings by likes with an AUC of `IMPLAUSIBLE_AUC` or more, or of what remains to 1
    or less. The second finds values that were written with a time that they are not of.

    Args:
        examples: n of them.
        served_ms: When each one's feed was served, (n,).
        written_ms: The newest time of its joined values, -1 where it is not known; (n,).
    """
    late = written_ms > served_ms
    if late.any():
        worst = int((written_ms - served_ms).max())
        yield f"{int(late.sum()):,} rows have values from up to {worst:,} ms after they were served"
    liked = examples.like == 1
    if min(int(liked.sum()), int((~liked).sum())) < _ENOUGH:
        return
    for column, name in enumerate(DENSE):
        found = auc(examples.features.dense[:, column], liked)
        if max(found, 1 - found) >= IMPLAUSIBLE_AUC:
            yield f"{name} alone tells likes with an AUC of {found:.3f}"


def auc(values: NDArray[np.float32], liked: NDArray[np.bool_]) -> float:
    """How likely a liked one's value is above another's, ties being half; needs some of both."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    # Equal values share their places' mean.
    places = ((ends - counts + ends + 1) / 2)[which.reshape(-1)]
    ones = int(liked.sum())
    above = float(places[liked].sum()) - ones * (ones + 1) / 2
    return above / (ones * (len(values) - ones))
