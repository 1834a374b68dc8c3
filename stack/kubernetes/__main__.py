"""`python -m stack.kubernetes COMMAND ...`: a command with a cluster of its own, which then goes.

The mesh runs in the cluster, as `k8s/overlays/test` says; its backing systems are a stack on this
machine. The command finds all of it by variables of its environment.
"""

import asyncio
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from mesh import logs
from mesh.errors import FailedPrecondition, FeedError
from mesh.settings import Settings
from stack import stack
from stack.daemon import Daemon
from stack.images import IMAGES, tag
from stack.kubernetes import images, network, programs
from stack.kubernetes.control_plane import ControlPlane
from stack.kubernetes.node import PAUSE_IMAGE, Node, require
from stack.place import Place

# Where k8s/overlays/test expects the stack.
_STACK_PORT = 14000
_API_PORT = 6443
# Not of the mesh: Feast is the stack's, here.
_ELSEWHERE = ("feast",)


async def run(command: list[str], settings: Settings) -> int:
    """The command's exit code.

    Raises:
        FeedError: Something does not install, build or start.
    """
    with _only_one(settings):
        # Short, because sockets are in it.
        folder = Path(tempfile.mkdtemp(prefix="feed-"))
        cache = settings.stack_cache.expanduser()
        place = Place(network.HOST, _STACK_PORT, folder / "stack", cache)
        try:
            async with _cluster(place) as found_by:
                env = {**os.environ, **found_by}
                return await (await asyncio.create_subprocess_exec(*command, env=env)).wait()
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def _cluster(place: Place) -> AsyncIterator[dict[str, str]]:
    """Within the block, the cluster runs, knows our images, and the stack runs.

    It gives the variables by which a command finds both.
    """
    say = _Clock()
    require()
    async with asyncio.TaskGroup() as group:
        described = group.create_task(stack.describe(place))
        deciding = group.create_task(programs.control_plane(place))
        running_pods = group.create_task(programs.node(place))
    servers = described.result()
    say("programs installed")
    # Of the stack, the vector engine has traces.
    os.environ["FEED_OTLP_ENDPOINT"] = f"grpc://{place.host}:{network.COLLECTOR_PORT}"
    folder = place.folder.parent
    control = ControlPlane(
        *(deciding.result(), folder / "control", network.NODE, _API_PORT), within=network.WITHIN
    )
    node = Node(running_pods.result(), folder / "node", place.cache / "containerd", control)
    with network.network():
        node.prepare(control.prepare())
        parts = {**control.servers(), **node.servers()}
        running = stack.daemons(place, {**parts, **servers, "docker": images.docker(place)})
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(stack.start({name: running[name] for name in (*parts, *servers)}))
                group.create_task(_build_images(place, running["docker"], say))
            say("cluster and stack run")
            tags = [tag(name) for name in IMAGES if name not in _ELSEWHERE]
            await images.load(
                *([PAUSE_IMAGE, *tags], running["docker"].server.url),
                *(node.socket, node.images / "loaded.json"),
            )
            await running["docker"].stop()
            say("images loaded")
            yield {
                "FEED_STACK_HOST": place.host,
                "FEED_STACK_PORT": str(place.first_port),
                "FEED_DATA_DIR": str(folder),
                "FEED_TEST_KUBECTL": str(control.programs["kubectl"]),
                "KUBECONFIG": str(control.folder / "pki" / "admin.kubeconfig"),
            }
        except BaseException:
            stack.print_logs(running)
            raise
        finally:
            await _empty(control)
            await stack.stop(running)
            await asyncio.to_thread(node.remove_mounts)


async def _build_images(place: Place, docker: Daemon, say: "_Clock") -> None:
    await docker.start()
    await images.build(place, docker.server.url)
    say("images built")


async def _empty(control: ControlPlane) -> None:
    """Ends all pods while there is still a kubelet to end them, without their usual patience."""
    kubectl = control.kubectl("feedmesh")
    try:
        await kubectl("delete", "deployments,jobs", "--all", "--cascade=orphan", "--wait=false")
        await kubectl("delete", "replicasets", "--all", "--cascade=orphan")
        await kubectl("delete", "pods", "--all", "--grace-period=1", "--timeout=60s")
    except FeedError as error:
        print(f"pods are left to be killed: {error}", flush=True)


class _Clock:
    """Says what is done, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", flush=True)


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """There is one network namespace of that name on a machine."""
    cache = settings.stack_cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".cluster.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition("another cluster of ours runs on this machine") from None
        yield


def main() -> None:
    """Runs it and exits with the command's exit code; a machine that cannot is told why."""
    settings = Settings()
    logs.setup(settings)
    try:
        sys.exit(asyncio.run(run(sys.argv[1:], settings)))
    except* (OSError, FeedError) as errors:
        sys.exit(f"the cluster cannot be had: {errors.exceptions[0]}")


if __name__ == "__main__":
    main()
