"""The Open Bandit Pipeline, in an environment of its own.

`python -m stack.open_bandit MODULE ...` runs a module of this checkout there.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from mesh import logs
from mesh.errors import FeedError
from mesh.settings import Settings
from stack import environments
from stack.installing import once, run
from stack.place import Place

NAME = "off-policy"
_PINS = environments.pins("obp")


async def package(cache: Path) -> Path:
    """The folder that has the package `obp`, installed once; its data lies in it.

    Raises:
        FailedPrecondition: It does not install.
    """
    python = await environments.python(cache, NAME)

    async def build(folder: Path) -> None:
        # Its metadata asks for a Python before 3.11, and for much that its estimators never import.
        # uv has no way to disregard the first.
        await run(
            *(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"),
            *("--ignore-requires-python", "--no-build-isolation", "--no-compile"),
            *("--target", str(folder / "package"), "--requirement", str(_PINS)),
            cwd=folder,
        )

    definition = await asyncio.to_thread(_PINS.read_bytes)
    return await once(cache, "obp", definition, build) / "package"


async def run_module(cache: Path, module: str, *arguments: str) -> int:
    """Runs a module of this checkout where `obp` can be imported; returns its exit code.

    Raises:
        FailedPrecondition: The environment does not install.
    """
    folder = await package(cache)
    paths = (environments.ROOT, environments.ROOT / "stubs", folder)
    return await environments.run_module(
        cache,
        NAME,
        module,
        *arguments,
        env={
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            # Gradient boosting's threads spin while they wait, which takes minutes on busy cores.
            "OMP_WAIT_POLICY": "PASSIVE",
        },
    )


def main() -> None:
    """Exits with the module's exit code."""
    parser = argparse.ArgumentParser(prog="python -m stack.open_bandit")
    parser.add_argument("module")
    options, arguments = parser.parse_known_args()
    settings = Settings()
    logs.setup(settings)
    try:
        cache = Place.of(settings).cache
        sys.exit(asyncio.run(run_module(cache, options.module, *arguments)))
    except FeedError as error:
        sys.exit(f"the Open Bandit Pipeline cannot be had: {error}")


if __name__ == "__main__":
    main()
