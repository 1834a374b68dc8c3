"""Waiting for a condition, with a limit."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], within_s: float = ..., every_s: float = ...
) -> T: ...
@overload
async def eventually(
    condition: Callable[[], T], within_s: float = ..., every_s: float = ...
) -> T: ...
async def eventually(
    condition: Callable[[], Any], within_s: float = 20.0, every_s: float = 0.02
) -> Any:
    """Returns the first truthy result; an assertion that still fails at the limit is raised."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            result = condition()
            if inspect.isawaitable(result):
                result = await result
            if result:
                return result
            failure = AssertionError(f"still {result!r} after {within_s} s")
        except AssertionError as error:
            failure = error
        if time.monotonic() > deadline:
            raise failure
        await asyncio.sleep(every_s)
