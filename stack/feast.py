"""Feast in an environment of its own, and the commands of `features/` that run there.

`python -m stack.feast materialize | check | compact`, on the stack's Feast.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mesh import logs
from mesh.errors import FeedError, Internal
from mesh.settings import Settings
from stack import environments
from stack.place import Place, Port

ENVIRONMENT = "feast"
REPOSITORY = environments.ROOT / "features"
# The stack's Valkey has the feature cache in database 0.
_DATABASE = 1
# Scripts of the repository, by command.
_COMMANDS = ("materialize", "check", "compact")


def environment(place: Place) -> Mapping[str, str]:
    """What `features/` reads."""
    folder = place.data("feast")
    return {
        "FEED_FEAST_PROJECT": "feedmesh",
        "FEED_FEAST_DATA": str(folder),
        "FEED_FEAST_REDIS": f"{place.host}:{place.port(Port.VALKEY)},db={_DATABASE}",
        "FEED_FEAST_CACHE": f"redis://{place.host}:{place.port(Port.VALKEY)}/0",
        "FEAST_USAGE": "False",
        # Where its web server puts a socket; by default two servers of one user share it.
        "XDG_RUNTIME_DIR": str(folder),
    }


async def historical(cache: Path, data: Path, folder: Path) -> None:
    """Adds values of the past to a folder of entities, as features/historical.py says.

    Args:
        cache: Where Feast's environment is, or will be.
        data: FEED_FEAST_DATA of the Feast whose values they are; only read.
        folder: With `<view>.parquet` files; `<view>-values.parquet` come beside them.

    Raises:
        FailedPrecondition: Feast does not install.
        Internal: It does not give them.
    """
    interpreter = await environments.python(cache, ENVIRONMENT)
    process = await asyncio.create_subprocess_exec(
        *(str(interpreter), str(REPOSITORY / "historical.py"), "--folder", str(folder)),
        cwd=REPOSITORY,
        env={
            **os.environ,
            "FEED_FEAST_PROJECT": "feedmesh",
            "FEED_FEAST_DATA": str(await asyncio.to_thread(data.resolve)),
            # No online value is read.
            "FEED_FEAST_REDIS": "127.0.0.1:0",
            "FEAST_USAGE": "False",
            "PYTHONWARNINGS": "ignore",
        },
    )
    if await process.wait():
        raise Internal("Feast's values of the past cannot be had.")


async def command(settings: Settings, name: str, arguments: list[str]) -> int:
    """Runs the repository's script on the stack's Feast; returns its exit code.

    Raises:
        FailedPrecondition: Feast does not install.
    """
    place = Place.of(settings)
    interpreter = await environments.python(place.cache, ENVIRONMENT)
    process = await asyncio.create_subprocess_exec(
        *(str(interpreter), str(REPOSITORY / f"{name}.py"), *arguments),
        cwd=REPOSITORY,
        env={
            **os.environ,
            **environment(place),
            # Dask's, which would bury what the command prints.
            "PYTHONWARNINGS": "ignore::FutureWarning",
        },
    )
    return await process.wait()


def main() -> None:
    """Exits with the command's exit code."""
    parser = argparse.ArgumentParser(prog="python -m stack.feast")
    parser.add_argument("command", choices=_COMMANDS)
    options, arguments = parser.parse_known_args()
    settings = Settings()
    logs.setup(settings)
    try:
        sys.exit(asyncio.run(command(settings, options.command, arguments)))
    except FeedError as error:
        sys.exit(f"Feast cannot be had: {error}")


if __name__ == "__main__":
    main()
