"""How a process of ours begins and ends."""

import asyncio
import importlib.metadata
import sys
import time
from collections.abc import Awaitable, Callable

import prometheus_client
import uvloop

from mesh import logs, metrics, telemetry, trace_buffer
from mesh.settings import Settings

_LAG_EVERY_S = 0.25


def run(
    name: str, serve: Callable[[Settings], Awaitable[None]], *, hosts_traces: bool = False
) -> None:
    """Runs `serve` to its end as the service `name`; exits with 1 when it cannot listen.

    Args:
        name: The service, as its spans, its metrics and its log lines name it.
        serve: Runs until `mesh.lifecycle.until_stopped` returns, then cleans up.
        hosts_traces: Whether it has the gateway, which keeps FEED_DEBUG_TRACES traces of all.
    """
    settings = Settings()
    logs.setup(settings)
    sends_traces = settings.debug_traces and not hosts_traces
    telemetry.setup(settings, *([trace_buffer.Sender(settings)] if sends_traces else []))
    telemetry.become_service(name)
    metrics.INFO.labels(importlib.metadata.version("feedmesh"), name).set(1)

    async def main() -> None:
        if settings.metrics_port:
            prometheus_client.start_http_server(settings.metrics_port, settings.host)
        watching = asyncio.create_task(measure_loop_lag(), name="measure loop lag")
        try:
            await serve(settings)
        finally:
            watching.cancel()

    try:
        uvloop.run(main())
    except OSError as error:
        sys.exit(f"{name}: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        pass
    finally:
        telemetry.shutdown()


async def measure_loop_lag(every_s: float = _LAG_EVERY_S) -> None:
    """Observes how late this loop is for a timer, until cancelled."""
    while True:
        due = time.perf_counter() + every_s
        await asyncio.sleep(every_s)
        # A loop counts in whole milliseconds, so a timer may also be a little early.
        metrics.LOOP_LAG.observe(max(time.perf_counter() - due, 0.0))
