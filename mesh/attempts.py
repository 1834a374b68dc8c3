"""When a gRPC call is tried again: after a refusal, or beside an attempt that takes too long.

gRPC's own retries are below its interceptors: all attempts would share one client span. Here each
attempt has its own, and with it its own server span. gRPC's core does not hedge at all.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

# An attempt by its number, from 0: gives the call that has ended, and its status.
Attempt = Callable[[int], Awaitable[tuple[Any, grpc.StatusCode]]]
_Running = asyncio.Task[tuple[Any, grpc.StatusCode]]


@dataclass(frozen=True, slots=True)
class Attempts:
    """How often a call is tried, and when. Only for calls that may be repeated; all of ours may.

    Attributes:
        limit: Attempts of one call.
        backoff_s: Seconds before the second; doubled before each further one, and half of it
            drawn by chance.
        hedge_after_s: Seconds after which a second attempt is made beside one that has not
            answered, whose answer then does not matter if it comes later; None for never.
    """

    limit: int = 3
    backoff_s: float = 0.02
    hedge_after_s: float | None = None

    async def run(self, attempt: Attempt, ends: float | None) -> Any:
        """The call that succeeded, or the last one that failed.

        Args:
            attempt: Makes one.
            ends: The call's deadline on the clock of time.monotonic(); None without one.
        """
        if self.hedge_after_s is None:
            return await self._in_turn(attempt, ends)
        return await self._beside_each_other(attempt, self.hedge_after_s, ends)

    async def _in_turn(self, attempt: Attempt, ends: float | None) -> Any:
        for number in range(self.limit):
            call, code = await attempt(number)
            if not _again(code) or not await self._pause(number, ends):
                break
        return call

    async def _beside_each_other(self, attempt: Attempt, after_s: float, ends: float | None) -> Any:
        numbers = iter(range(self.limit))
        running: set[_Running] = set()
        failures = 0
        try:
            while True:
                number = next(numbers, None)
                if number is not None:
                    running.add(asyncio.ensure_future(attempt(number)))
                timeout = after_s if number is not None else None
                done, running = await asyncio.wait(
                    running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
                for each in done:
                    call, code = each.result()
                    if not _again(code):
                        return call
                    failures += 1
                if done and not running and not await self._pause(failures - 1, ends):
                    return call
        finally:
            for loser in running:
                loser.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _pause(self, number: int, ends: float | None) -> bool:
        """Waits after the failed attempt; False, at once, when there shall be no further one."""
        pause_s = self.backoff_s * 2**number * random.uniform(0.5, 1)
        if number + 1 >= self.limit or (ends is not None and time.monotonic() + pause_s >= ends):
            return False
        await asyncio.sleep(pause_s)
        return True


def _again(code: grpc.StatusCode) -> bool:
    return code is grpc.StatusCode.UNAVAILABLE
