"""The backends of an embedded installation: Valkey and the vector engine, each a process."""

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from local.children import Child
from local.valkey import Valkey
from mesh.settings import Settings
from stores.connect import Connections
from stores.sql.migrate import migrate

READY_WITHIN_S = 60.0


class AlreadyRunning(OSError):
    """Another process runs an installation on the data folder."""


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Holds the data folder; a lock of the kernel's, which a killed process loses too.

    Raises `AlreadyRunning`.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir / "launcher.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise AlreadyRunning(
                f"feedmesh is running already on {settings.data_dir} (process {lock.read()}); "
                "stop it, or choose another FEED_DATA_DIR and other ports"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@asynccontextmanager
async def backends(settings: Settings) -> AsyncIterator[None]:
    """Within the block the backends are there: a running installation's, or started here."""
    async with AsyncExitStack() as held:
        try:
            held.enter_context(only_one(settings))
        except AlreadyRunning:
            await migrate(settings.url(settings.sql_url))
        else:
            await held.enter_async_context(started(settings))
        yield


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[None]:
    """Within the block, the embedded backends that FEED_*_URL ask for run as children of ours.

    To be called by whoever holds the data folder. What a killed launcher left behind is stopped.
    The source of truth gets its newest schema.
    """
    async with AsyncExitStack() as running:
        if _wants_valkey(settings):
            valkey = Valkey(settings.data_dir / "valkey", settings.valkey_port)
            await valkey.start()
            running.push_async_callback(valkey.stop)
        if _wants_vectors(settings):
            path = settings.url(settings.vectors_url).removeprefix("edge://")
            engine = Child(
                "vectors",
                [
                    "stores.vectors.edge_server",
                    "--socket",
                    path,
                    "--data",
                    str(settings.data_dir / "vectors"),
                ],
                settings.shutdown_grace_s,
                child_env(settings, settings.metrics_port and settings.metrics_port + 1),
            )
            await engine.start()
            running.push_async_callback(engine.stop)
            async with asyncio.timeout(READY_WITHIN_S):
                while not await _vectors_answer(settings):  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.05)
        await migrate(settings.url(settings.sql_url))
        yield


def child_env(settings: Settings, metrics_port: int) -> dict[str, str]:
    """What a child's environment says otherwise than the launcher's own.

    Args:
        settings: The launcher's, which may differ from what is in its environment.
        metrics_port: One port cannot be that of several processes; 0 for none.
    """
    return {
        "FEED_DEBUG_TRACES": str(settings.debug_traces),
        "FEED_METRICS_PORT": str(metrics_port),
    }


def port_is_taken(host: str, port: int) -> bool:
    """Whether a server could not listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _wants_valkey(settings: Settings) -> bool:
    """Whether FEED_REDIS_URL is the embedded Valkey rather than somebody's server."""
    url = urlsplit(settings.redis_url)
    return url.hostname == "127.0.0.1" and url.port == settings.valkey_port


def _wants_vectors(settings: Settings) -> bool:
    """Whether FEED_VECTORS_URL is the engine of this data folder rather than somebody's."""
    url = settings.url(settings.vectors_url)
    return url.startswith("edge://") and settings.data_dir in Path(url[len("edge://") :]).parents


async def _vectors_answer(settings: Settings) -> bool:
    async with Connections(settings) as stores:
        try:
            await stores.vectors().count()
        except Exception:
            return False
    return True
