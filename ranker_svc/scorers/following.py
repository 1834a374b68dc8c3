"""The models that the registry names: what is promoted there ranks here within a second."""

import asyncio
import logging
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mesh import metrics
from mesh.errors import Unavailable
from ranker_svc.features import CATEGORICAL, DENSE, Features
from ranker_svc.scorers.onnx import OnnxScorer
from ranker_svc.scorers.port import Lineup, Scorer
from stores.registry.port import ModelRegistry, State

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
# What did not load is tried again, as its files may be on their way to this machine.
_TRY_AGAIN_S = 10.0


class Follower:
    """A line-up that is as the registry says.

    A version is loaded, and has scored a row, before it takes the place of another, between two
    requests. One that does not load leaves the line-up as it was.

    Args:
        registry: Where versions are, and which of them serves.
        in_front: Makes what is asked before the version in this process, such as a server of the
            same version; of None before anything is promoted.
    """

    def __init__(
        self, registry: ModelRegistry, in_front: Callable[[int | None], Scorer] | None = None
    ) -> None:
        self._registry = registry
        self._in_front = in_front
        self._state: State | None = None
        self._failed: State | None = None
        self._try_again_at = 0.0
        self._loaded: dict[int, OnnxScorer] = {}
        self.lineup = Lineup()

    async def follow(self) -> None:
        """Keeps the line-up up to date, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Brings the line-up up to date."""
        state = None
        try:
            state = await asyncio.to_thread(self._registry.state)
            if state == self._state or self._is_too_early(state):
                return
            lineup = await self._lineup_of(state)
        except Exception as error:
            # onnxruntime raises classes of its own, with no common base but this one.
            metrics.count(metrics.MODEL_LOADS.labels("failed"))
            _log.exception("the model registry names what does not load, or cannot be read")
            self._failed, self._try_again_at = state, time.monotonic() + _TRY_AGAIN_S
            if self._state is None:
                self.lineup = Lineup((_Missing(error),))
            return
        metrics.count(metrics.MODEL_LOADS.labels("ok"))
        self._state, self._failed, self.lineup = state, None, lineup
        names = [scorer.version for scorer in lineup.scorers]
        _log.info("ranking by %s", ", then ".join([*names, "the heuristic"]))

    def _is_too_early(self, state: State) -> bool:
        return state == self._failed and time.monotonic() < self._try_again_at

    async def _lineup_of(self, state: State) -> Lineup:
        scorers: list[Scorer] = []
        if self._state is not None and state.promoted == self._state.promoted:
            scorers = list(self.lineup.scorers)
        else:
            if self._in_front is not None:
                scorers.append(self._in_front(state.promoted))
            if state.promoted is not None:
                scorers.append(await self._load(state.promoted))
        shadow = await self._shadow(state.shadow)
        wanted = {state.promoted, state.shadow}
        self._loaded = {n: scorer for n, scorer in self._loaded.items() if n in wanted}
        return Lineup(tuple(scorers), shadow, state.shadow_share)

    async def _shadow(self, number: int | None) -> Scorer | None:
        """A shadow that does not load is none: it must not stand in the way of a promotion."""
        if number is None:
            return None
        try:
            return await self._load(number)
        except Exception:
            metrics.count(metrics.MODEL_LOADS.labels("failed"))
            _log.exception("the shadow, version %d, does not load", number)
            return None

    async def _load(self, number: int) -> OnnxScorer:
        if number not in self._loaded:
            scorer = await asyncio.to_thread(self._opened, number)
            # A model may load and yet not run.
            await scorer.score(_ONE_ROW)
            self._loaded[number] = scorer
        return self._loaded[number]

    def _opened(self, number: int) -> OnnxScorer:
        return OnnxScorer(self._registry.model_file(number))


class _Missing:
    """In the place of a promoted version that does not load, so that pages say so."""

    version = "missing"

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def score(self, features: Features) -> NDArray[np.float32]:
        raise Unavailable(f"the promoted model does not load: {self._error}")


_ONE_ROW = Features(
    np.zeros((1, len(DENSE)), np.float32), np.zeros((1, len(CATEGORICAL)), np.int64)
)
