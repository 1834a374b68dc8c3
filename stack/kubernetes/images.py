"""Images for a node that can pull none: a base by debootstrap, ours by a Docker of its own."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh.errors import FailedPrecondition
from stack.daemon import Server
from stack.images import ROOT
from stack.installing import once, run
from stack.kubernetes.node import PAUSE_IMAGE
from stack.place import Place

_SUITE = "bookworm"
_PACKAGES = "python3,ca-certificates"
# Of what debootstrap installs, what no image needs.
_UNNEEDED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man")
_PAUSE = 'FROM {base}\nUSER 65534:65534\nENTRYPOINT ["sleep", "infinity"]\n'


def docker(place: Place) -> Server:
    """A Docker daemon that only builds: containers of its have no network.

    What it has built stays in the place's cache, so that the next build takes seconds.
    """
    folder = place.data("docker")
    socket = folder / "docker.sock"

    async def is_healthy() -> bool:
        return socket.exists()

    return Server(
        name="docker",
        version="",
        command=[
            *("dockerd", "--data-root", str(place.cache / "docker")),
            *("--exec-root", str(folder / "exec"), "--pidfile", str(folder / "docker.pid")),
            *("--host", f"unix://{socket}", "--bridge=none", "--iptables=false"),
            *("--log-level", "warn"),
        ],
        url=f"unix://{socket}",
        ports=[],
        is_healthy=is_healthy,
    )


async def base(place: Place) -> Path:
    """The base image's file system as a tar file: Debian with Python, made once.

    Raises:
        FailedPrecondition: There is no debootstrap, or it fails, without root for one.
    """

    async def build(folder: Path) -> None:
        root = folder / "root"
        await run(
            *("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)),
            cwd=folder,
        )
        for unneeded in _UNNEEDED:
            await asyncio.to_thread(shutil.rmtree, root / unneeded, ignore_errors=True)
        tar = ("tar", "--numeric-owner", "--sort=name", "-C", str(root), "-cf", "base.tar", ".")
        await run(*tar, cwd=folder)
        await asyncio.to_thread(shutil.rmtree, root)

    definition = " ".join((_SUITE, _PACKAGES, *_UNNEEDED))
    return await once(place.cache, "base-image", definition.encode(), build) / "base.tar"


async def build(place: Place, docker_url: str) -> None:
    """All images of ours and the node's own, in that Docker.

    Raises:
        FailedPrecondition: One does not build.
    """
    env = {"DOCKER_HOST": docker_url, "DOCKER_BUILDKIT": "1", "PATH": _path()}
    tar = await base(place)
    image = f"feedmesh-base:{tar.parent.name}"
    try:
        await run("docker", "image", "inspect", image, cwd=ROOT, env=env)
    except FailedPrecondition:
        # Once: each import is another image, and so is what is built upon it.
        await run("docker", "import", str(tar), image, cwd=ROOT, env=env)
    pause = place.data("docker") / "pause"
    await asyncio.to_thread(_write, pause / "Dockerfile", _PAUSE.replace("{base}", image))
    await run("docker", "build", "--quiet", "--tag", PAUSE_IMAGE, str(pause), cwd=pause, env=env)
    command = (sys.executable, "-m", "stack.images", "--base", image)
    print(await run(*command, cwd=ROOT, env=env))


async def load(tags: Sequence[str], docker_url: str, containerd: Path, loaded: Path) -> None:
    """Brings images from Docker to containerd, those that it does not have.

    Args:
        tags: Of the images.
        docker_url: Where they are.
        containerd: Its socket.
        loaded: A file in which this remembers what containerd has.

    Raises:
        FailedPrecondition: One is not there.
    """
    env = {"DOCKER_HOST": docker_url, "PATH": _path()}
    inspect = ("docker", "image", "inspect", "--format", "{{.Id}}", *tags)
    ids = dict(zip(tags, (await run(*inspect, cwd=ROOT, env=env)).split(), strict=True))
    known = await asyncio.to_thread(_read, loaded)
    if missing := [image for image in tags if known.get(image) != ids[image]]:
        imported = f"ctr --address {containerd} --namespace k8s.io images import -"
        pipe = f"docker save {' '.join(missing)} | {imported}"
        await run("bash", "-c", f"set -o pipefail; {pipe}", cwd=ROOT, env=env)
        await asyncio.to_thread(_write, loaded, json.dumps(ids))


def _path() -> str:
    """Debian's own Docker first: it builds by BuildKit without a plug-in."""
    return os.pathsep.join(("/usr/bin", "/usr/sbin", os.environ.get("PATH", os.defpath)))


def _read(file: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
