"""Programs from the Go module proxy."""

import re
from collections.abc import Sequence
from pathlib import Path

from stack.installing import once, run
from stack.place import Place

# A checkout around the build folder is none of the program's business.
_ENV = {"GOFLAGS": "-mod=mod -buildvcs=false"}


async def installed(place: Place, package: str, version: str) -> Path:
    """The program of a module as it is published, built once.

    Args:
        place: Whose cache it goes to.
        package: Its import path.
        version: The module's.

    Raises:
        FailedPrecondition: There is no Go, or it does not build.
    """
    target = f"{package}@{version}"
    name = program(package)

    async def build(folder: Path) -> None:
        env = {"GOFLAGS": "-buildvcs=false", "GOBIN": str(folder)}
        await run("go", "install", target, cwd=folder, env=env)

    return await once(place.cache, name, target.encode(), build) / name


async def built(place: Place, package: str, go_mod: str) -> Path:
    """The program of a module that needs replacements, which only a go.mod of ours can say.

    Raises:
        FailedPrecondition: As `installed`.
    """
    name = program(package)

    async def build(folder: Path) -> None:
        (folder / "go.mod").write_text(go_mod)
        await run("go", "build", "-o", str(folder / name), package, cwd=folder, env=_ENV)

    return await once(place.cache, name, go_mod.encode(), build) / name


async def built_together(
    place: Place, name: str, packages: Sequence[str], go_mod: str, linked: str = ""
) -> Path:
    """The folder of several such programs of one module, which need nothing of this machine's.

    Args:
        place: Whose cache it goes to.
        name: What they are together.
        packages: Their import paths.
        go_mod: The go.mod of ours.
        linked: What the linker is told (-ldflags).

    Raises:
        FailedPrecondition: As `installed`.
    """

    async def build(folder: Path) -> None:
        (folder / "go.mod").write_text(go_mod)
        command = ("go", "build", "-trimpath", "-ldflags", linked, "-o", f"{folder}/", *packages)
        await run(*command, cwd=folder, env={**_ENV, "CGO_ENABLED": "0"})

    definition = "\n".join((go_mod, linked, *packages))
    return await once(place.cache, name, definition.encode(), build)


def program(package: str) -> str:
    """What Go calls the program: the path's last part, less the module's major version."""
    parts = package.split("/")
    return parts[-2] if re.fullmatch(r"v\d+", parts[-1]) else parts[-1]
