"""`python -m stack.temporary COMMAND ...`: a command on a stack of its own, which then goes.

The command finds the stack by FEED_STACK_PORT and FEED_DATA_DIR.
"""

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from local.embedded import port_is_taken
from mesh import logs
from mesh.errors import FeedError
from mesh.settings import Settings
from stack.place import Place, Port
from stack.stack import daemons, describe, print_logs, start, stop

# Below those that systems give to clients.
_PORTS = range(15_000, 32_000, 20)


async def run(command: list[str], settings: Settings) -> int:
    """The command's exit code.

    Raises:
        FeedError: A server does not install or start.
    """
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="feed-"))
    place = Place(
        settings.stack_host,
        free_ports(settings.stack_host),
        folder / "stack",
        settings.stack_cache.expanduser(),
    )
    try:
        running = daemons(place, await describe(place))
        print(f"stack installed after {time.monotonic() - began:.0f} s", flush=True)
        try:
            await start(running)
            print(f"stack healthy after {time.monotonic() - began:.0f} s", flush=True)
            env = {"FEED_STACK_PORT": str(place.first_port), "FEED_DATA_DIR": str(folder)}
            process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **env})
            code = await process.wait()
            if code:
                print_logs(running)
            return code
        except FeedError:
            print_logs(running)
            raise
        finally:
            await stop(running)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def free_ports(host: str) -> int:
    """The first of as many free ports as a stack has."""
    for first in random.sample(_PORTS, len(_PORTS)):
        if not any(port_is_taken(host, first + port) for port in Port):
            return first
    raise OSError("no 20 free ports in a row")


def main() -> None:
    """Runs it and exits with the command's exit code."""
    settings = Settings()
    logs.setup(settings)
    try:
        sys.exit(asyncio.run(run(sys.argv[1:], settings)))
    except (OSError, FeedError) as error:
        sys.exit(f"the stack cannot be had: {error}")


if __name__ == "__main__":
    main()
