"""A second model beside the one whose scores count: scored after the answer, and compared."""

import asyncio
from random import Random

import numpy as np
from numpy.typing import NDArray

from mesh import deadlines, metrics, telemetry
from mesh.beside import Beside
from ranker_svc.features import Features
from ranker_svc.scorers.port import Lineup, Scorer

# As many as a page shows.
TOP = 20
_TIMEOUT_S = 2.0
_AT_ONCE = 4

Scores = NDArray[np.float32]


class Shadowing(Beside):
    """Scores a share of requests by the line-up's shadow, beside them; an async context manager.

    Args:
        chance: Decides which requests.
    """

    def __init__(self, chance: Random) -> None:
        super().__init__("score shadow", _AT_ONCE)
        self._chance = chance

    def sample(self, lineup: Lineup, features: Features, scores: Scores, version: str) -> None:
        """Perhaps begins it, of what was scored as `scores` by the model `version`."""
        shadow = lineup.shadow
        if shadow is None or not len(features) or self._chance.random() >= lineup.shadow_share:
            return
        if not self.begin(lambda: _compare(shadow, features, scores, version)):
            metrics.count(metrics.SHADOW_SCORED.labels("skipped"))


async def _compare(shadow: Scorer, features: Features, scores: Scores, version: str) -> None:
    telemetry.annotate({"feed.model.version": version, "feed.shadow.version": shadow.version})
    try:
        with deadlines.within(_TIMEOUT_S):
            async with asyncio.timeout(_TIMEOUT_S):
                others = await shadow.score(features)
    except Exception:
        # Counted whatever it is; the span has it.
        metrics.count(metrics.SHADOW_SCORED.labels("failed"))
        raise
    difference, overlap = float(np.mean(np.abs(others - scores))), top_overlap(scores, others)
    telemetry.annotate({"feed.shadow.difference": difference, "feed.shadow.overlap": overlap})
    metrics.count(metrics.SHADOW_SCORED.labels("ok"))
    metrics.observe(metrics.SHADOW_DIFFERENCE, difference)
    metrics.observe(metrics.SHADOW_OVERLAP, overlap)


def top_overlap(scores: Scores, others: Scores, top: int = TOP) -> float:
    """The share of the best `top` by one model that are among the best `top` by the other; 0 to 1.

    Of fewer candidates, of all of them, which is 1.
    """
    top = min(top, len(scores))
    best = [set(np.argsort(-each, kind="stable")[:top].tolist()) for each in (scores, others)]
    return len(best[0] & best[1]) / top
