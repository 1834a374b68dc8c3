"""Programs from the Go module proxy."""

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


def program(package: str) -> str:
    """What Go calls the program."""
    return package.rpartition("/")[2]
