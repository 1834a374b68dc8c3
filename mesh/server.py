"""How a service serves: health, reflection, traces, errors, deadlines, and a graceful end."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from mesh.channels import MAX_MESSAGE_BYTES
from mesh.rpc import ServerInterceptor
from mesh.settings import Settings

_log = logging.getLogger(__name__)
# (add_XServicer_to_server, the servicer, its full name)
ServedService = tuple[Callable[[Any, grpc.aio.Server], None], Any, str]


class GrpcServer:
    """A running gRPC server, as an async context manager.

    Args:
        name: Whom its spans belong to, e.g. "candidate_svc".
        address: host:port, or unix:path.
        services: What it serves.
        settings: FEED_SHUTDOWN_GRACE_S and FEED_CONNECTION_AGE_S are read.

    Raises:
        OSError: The address is taken; the message says which.
    """

    def __init__(
        self, name: str, address: str, services: Sequence[ServedService], settings: Settings
    ) -> None:
        self._name = name
        self._address = address
        self._services = services
        self._grace_s = settings.shutdown_grace_s
        self._age_ms = int(settings.connection_age_s * 1000)

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(
            interceptors=[ServerInterceptor(self._name, self._address)],
            options=[
                # Two servers must not share a port unnoticed.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # Clients reconnect now and then, and so find servers that were added since.
                ("grpc.max_connection_age_ms", self._age_ms),
                ("grpc.max_connection_age_grace_ms", 30_000),
            ],
        )
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [full_name for _, _, full_name in self._services]
        for add, servicer, _ in self._services:
            add(servicer, self._server)
        reflection.enable_server_reflection(
            [
                *names,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ],
            self._server,
        )
        try:
            self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"{self._name} cannot listen on {self._address}: {error}") from error
        await self._server.start()
        await self.set_serving(True)
        _log.info("%s listens on %s", self._name, self._address)
        return self

    async def set_serving(self, serves: bool) -> None:
        """Tells clients, and probes, whether calls are welcome; those that come are answered."""
        status = health_pb2.HealthCheckResponse
        for full_name in ("", *(name for _, _, name in self._services)):
            await self._health.set(full_name, status.SERVING if serves else status.NOT_SERVING)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._health.enter_graceful_shutdown()
        # Shielded: being cancelled while stopping must not leave the port open.
        await asyncio.shield(self._server.stop(self._grace_s))
