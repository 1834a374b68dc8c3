"""Many small calls at once, but not all of them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
AT_ONCE = 16


async def for_each(items: Iterable[T], act: Callable[[T], Awaitable[None]]) -> None:
    """Acts on each item, some at once; raises the first failure as it is."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(item: T) -> None:
        async with free:
            await act(item)

    await asyncio.gather(*map(one, items))
