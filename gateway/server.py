"""Serving the gateway over HTTP."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from gateway.app import create_app
from mesh.lifecycle import until_stopped
from mesh.settings import Settings
from stores.connect import Connections

_BACKLOG = 2048


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `mesh.lifecycle`'s to hear."""
        yield


async def serve_http(settings: Settings, stores: Connections) -> None:
    """Serves until the process is told to stop, then lets the requests in flight end.

    Raises OSError when the address is taken; the message says which.
    """
    config = uvicorn.Config(
        create_app(settings, stores),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=max(int(settings.shutdown_grace_s), 1),
    )
    with _listening(settings.host, settings.gateway_port) as listener:
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopped = asyncio.create_task(until_stopped())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        stopped.cancel()
        await serving


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} (FEED_GATEWAY_PORT): {error}") from error
