"""The gateway and the four services in one process: what `make run` serves with."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import candidate_svc.service
import filter_svc.service
import hydrator_svc.service
import ranker_svc.service
from gateway.server import serve_http
from mesh.process import run
from mesh.settings import Settings
from stores.connect import Connections


@asynccontextmanager
async def services(settings: Settings, stores: Connections) -> AsyncIterator[None]:
    """The four gRPC services, listening within the block."""
    async with AsyncExitStack() as running:
        for service in (candidate_svc, filter_svc, ranker_svc, hydrator_svc):
            await running.enter_async_context(service.service.server(settings, stores))
        yield


async def serve(settings: Settings) -> None:
    """Serves until the process is told to stop; the gateway stops first."""
    async with Connections(settings) as stores, services(settings, stores):
        await serve_http(settings, stores)


if __name__ == "__main__":
    run("gateway", serve, hosts_traces=True)
