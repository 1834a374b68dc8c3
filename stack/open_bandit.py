"""The Open Bandit Pipeline, in an environment of its own."""

import asyncio
import os
from pathlib import Path

from stack import environments
from stack.installing import once, run

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
        cache, NAME, module, *arguments, env={"PYTHONPATH": os.pathsep.join(map(str, paths))}
    )
