"""How a process of ours begins and ends."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import prometheus_client
import uvloop

from mesh import logs, telemetry
from mesh.settings import Settings


def run(name: str, serve: Callable[[Settings], Awaitable[None]]) -> None:
    """Runs `serve` to its end as the service `name`; exits with 1 when it cannot listen.

    Args:
        name: The service, as its spans and log lines name it.
        serve: Runs until `mesh.lifecycle.until_stopped` returns, then cleans up.
    """
    settings = Settings()
    logs.setup(settings)
    telemetry.setup(settings)
    telemetry.become_service(name)

    async def main() -> None:
        if settings.metrics_port:
            prometheus_client.start_http_server(settings.metrics_port, settings.host)
        await serve(settings)

    try:
        uvloop.run(main())
    except OSError as error:
        sys.exit(f"{name}: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    finally:
        telemetry.shutdown()
