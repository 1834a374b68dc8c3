"""The backends of an embedded installation: Valkey and the vector engine, each a process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from local.children import Child
from local.valkey import Valkey
from mesh.settings import Settings
from stores.connect import Connections
from stores.sql.migrate import migrate

READY_WITHIN_S = 30.0


@asynccontextmanager
async def backends(settings: Settings) -> AsyncIterator[None]:
    """Within the block, what FEED_*_URL asks for is there: started here, or running already.

    The source of truth has its newest schema.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as started:
        if _wants_valkey(settings) and not _answers(settings.valkey_port):
            valkey = Valkey(settings.data_dir / "valkey", settings.valkey_port)
            await valkey.start()
            started.push_async_callback(valkey.stop)
        if settings.vectors_url.startswith("edge://") and not await _vectors_answer(settings):
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
            )
            await engine.start()
            started.push_async_callback(engine.stop)
            async with asyncio.timeout(READY_WITHIN_S):
                while not await _vectors_answer(settings):  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.05)
        await migrate(settings.url(settings.sql_url))
        yield


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


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
    except OSError:
        return False


async def _vectors_answer(settings: Settings) -> bool:
    async with Connections(settings) as stores:
        try:
            await stores.vectors().count()
        except Exception:
            return False
    return True
