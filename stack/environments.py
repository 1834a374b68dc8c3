"""Python environments of their own, for what does not fit into the one that runs the mesh.

`python -m stack.environments NAME MODULE [ARGUMENTS]` runs a module in one.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from mesh.errors import FeedError
from mesh.settings import Settings
from stack.installing import once, run
from stack.place import Place

ROOT = Path(__file__).parent.parent
TRAINING = "training"
RECBOLE = "recbole"
_INTERPRETER = Path("env", "bin", "python")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def pins(name: str) -> Path:
    """What the environment has: `requirements/<name>.txt`."""
    return ROOT / "requirements" / f"{name}.txt"


async def python(cache: Path, name: str) -> Path:
    """The interpreter of the environment, which is installed once into the cache.

    Args:
        cache: `Place.cache`.
        name: Of a file of `requirements/`.

    Raises:
        FailedPrecondition: It does not install.
    """
    uv = (sys.executable, "-m", "uv")

    async def build(folder: Path) -> None:
        # Not below the environment that runs this: it would be found there, too.
        base = str(getattr(sys, "_base_executable", sys.executable))
        await run(*uv, "venv", "--quiet", "--relocatable", "--python", base, "env", cwd=folder)
        await run(
            *(*uv, "pip", "install", "--quiet", "--compile-bytecode", "--require-hashes"),
            *("--requirements", str(pins(name)), "--python", str(folder / _INTERPRETER)),
            cwd=folder,
        )

    definition = await asyncio.to_thread(pins(name).read_bytes)
    folder = await once(cache, name, definition + _PYTHON.encode(), build)
    return folder / _INTERPRETER


async def run_module(
    cache: Path, name: str, module: str, *arguments: str, env: Mapping[str, str] | None = None
) -> int:
    """Runs a module of this checkout in the environment; returns its exit code.

    Raises:
        FailedPrecondition: The environment does not install.
    """
    interpreter = await python(cache, name)
    process = await asyncio.create_subprocess_exec(
        *(str(interpreter), "-m", module, *arguments),
        env={
            **os.environ,
            # The mesh is not installed there: it is imported from where it lies.
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "stubs"))),
            **(env or {}),
        },
    )
    return await process.wait()


def main() -> None:
    """Exits with the module's exit code."""
    name, module, *arguments = sys.argv[1:]
    cache = Place.of(Settings()).cache
    try:
        sys.exit(asyncio.run(run_module(cache, name, module, *arguments)))
    except FeedError as error:
        sys.exit(f"the environment {name} cannot be had: {error}")


if __name__ == "__main__":
    main()
