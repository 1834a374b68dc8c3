"""`python -m workers [name ...]` runs the named workers, or all."""

import asyncio
import sys

from mesh.lifecycle import until_stopped
from mesh.process import run
from mesh.settings import Settings
from stores.connect import Connections
from workers.runner import NAMES, run_workers


async def serve(settings: Settings) -> None:
    """Runs the workers until the process is told to stop, or one of them fails."""
    async with Connections(settings) as stores:
        await stores.until_migrated()
        working = asyncio.create_task(run_workers(settings, stores, sys.argv[1:]))
        stopped = asyncio.create_task(until_stopped())
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        working.cancel()
        for end in await asyncio.gather(working, stopped, return_exceptions=True):
            if isinstance(end, Exception):
                raise end


if __name__ == "__main__":
    if set(sys.argv[1:]) - set(NAMES):
        sys.exit(f"usage: python -m workers [name ...]; names: {', '.join(NAMES)}")
    run("workers", serve)
