"""How often one may ask. Counted in Redis, so that all gateways count together."""

import asyncio
import time
from typing import Any

from limits import RateLimitItem, WindowStats, parse
from limits.aio.storage import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from mesh.degrade import best_effort
from mesh.errors import ResourceExhausted
from mesh.settings import Settings

# Without an answer by then, requests pass: better too many than none.
_TIMEOUT_S = 0.25


class RateLimits:
    """The limits of users and of addresses; requests pass while Redis is away.

    Args:
        settings: FEED_RATE_LIMIT_* are read.
        redis: Where they are counted.
    """

    def __init__(self, settings: Settings, redis: Redis) -> None:
        # Its documentation takes a pool, its types do not.
        shared: dict[str, Any] = {"connection_pool": redis.connection_pool}
        storage = RedisStorage(
            "async+redis://", implementation="redispy", key_prefix="limit", **shared
        )
        if isinstance(storage.bridge, RedispyBridge):
            # It makes a client of its own of the pool, which knows neither clusters nor spans.
            storage.bridge.storage = redis
            storage.bridge.register_scripts()
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._user = parse(settings.rate_limit_user)
        self._address = parse(settings.rate_limit_address)
        self._login = parse(settings.rate_limit_login)

    async def request(self, address: str, user_id: int | None = None) -> None:
        """Counts a request, both limits in one round trip. Raises `ResourceExhausted`."""
        limits = [(self._address, "address", address)]
        if user_id is not None:
            limits.append((self._user, "user", str(user_id)))
        passes = await asyncio.gather(*(self._passes(*limit) for limit in limits))
        if not all(passes):
            raise await self._refusal(*limits[passes.index(False)])

    async def login(self, address: str) -> None:
        """Counts a login or a sign-up. Raises `ResourceExhausted`."""
        limit = (self._login, "login", address)
        if not await self._passes(*limit):
            raise await self._refusal(*limit)

    async def _passes(self, limit: RateLimitItem, kind: str, who: str) -> bool:
        return await best_effort(
            self._limiter.hit(limit, kind, who),
            True,
            backend="rate_limits",
            degraded=[],
            timeout_s=_TIMEOUT_S,
        )

    async def _refusal(self, limit: RateLimitItem, kind: str, who: str) -> ResourceExhausted:
        now = time.time()
        window = await best_effort(
            self._limiter.get_window_stats(limit, kind, who),
            WindowStats(now, 0),
            backend="rate_limits",
            degraded=[],
            timeout_s=_TIMEOUT_S,
        )
        return ResourceExhausted(
            f"More than {limit} of this {kind}.", retry_after_s=max(window.reset_time - now, 1.0)
        )
