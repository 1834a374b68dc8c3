"""The whole system from one command: its backends, then its processes, until it is told to stop.

Whatever process dies is started again; when the launcher ends, however it ends, all end.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import uvloop
from rich.console import Console
from rich.progress import Progress

from local.children import Child
from local.demo.load import load
from local.demo.world import DEMO_PASSWORD, DEMO_USERNAME
from local.embedded import only_one, port_is_taken
from mesh import logs, telemetry
from mesh.errors import FeedError
from mesh.lifecycle import until_stopped
from mesh.settings import Settings
from stores.connect import Connections

READY_WITHIN_S = 120.0
# What a launcher has where the user did not say otherwise: one wants to look inside.
_DEFAULTS = {"debug_traces": 500, "metrics_port": 9464}

Backends = Callable[[Settings], AbstractAsyncContextManager[None]]
Processes = Callable[[Settings], Mapping[str, Child]]


async def launch(
    settings: Settings, console: Console, backends: Backends, processes: Processes
) -> None:
    """Starts everything, says how to use it, and waits to be stopped.

    Args:
        settings: Of all processes; FEED_*_URL name the backends.
        console: Where it says how it gets on.
        backends: Within its block the backends serve.
        processes: The processes by name, in the order of their start. The first has the gateway.
    """
    began = time.monotonic()
    with only_one(settings):
        await _ports_free(settings)
        console.print("starting the backends ...")
        async with backends(settings):
            if settings.demo:
                await _load_demo(settings, console)
            async with _running(processes(settings).values()):
                await _ready(settings)
                console.print(_welcome(settings, time.monotonic() - began))
                await until_stopped()
                console.print("stopping ...")
    console.print("stopped")


async def _ports_free(settings: Settings) -> None:
    """Waits a little: children of a killed launcher take a moment to notice. Then raises."""
    of_mesh = {
        f"FEED_{name.upper()}_PORT": getattr(settings, f"{name}_port")
        for name in ("gateway", "candidate", "filter", "ranker", "hydrator")
    }
    wanted = dict(of_mesh)
    if settings.metrics_port:
        wanted["FEED_METRICS_PORT"] = settings.metrics_port
        wanted["FEED_METRICS_PORT + 1"] = settings.metrics_port + 1
    deadline = time.monotonic() + settings.shutdown_grace_s
    while taken := [name for name, port in wanted.items() if port_is_taken(settings.host, port)]:
        # The lock was free, so what holds some of the mesh's ports is most likely not ours.
        not_ours = 0 < len(of_mesh.keys() & set(taken)) < len(of_mesh)
        if time.monotonic() > deadline or not_ours:
            what = ", ".join(f"{wanted[name]} ({name})" for name in taken)
            raise OSError(f"port taken: {what}; stop what listens there, or set another")
        await asyncio.sleep(0.1)


@asynccontextmanager
async def _running(children: Iterable[Child]) -> AsyncIterator[None]:
    """Within the block the children run; the gateway, which is the first, stops first."""
    children = list(children)
    try:
        for child in children:
            await child.start()
        yield
    finally:
        first, *others = children
        await first.stop()
        await asyncio.gather(*(child.stop() for child in others))


async def _load_demo(settings: Settings, console: Console) -> None:
    with Progress(console=console, transient=True) as progress:
        async with Connections(settings) as stores:
            await load(stores, settings, progress)


async def _ready(settings: Settings) -> None:
    url = f"http://{settings.host}:{settings.gateway_port}/readyz"
    async with httpx.AsyncClient() as client, asyncio.timeout(READY_WITHIN_S):
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(url, timeout=2)).status_code == 200:
                    return
            await asyncio.sleep(0.1)


def _welcome(settings: Settings, seconds: float) -> str:
    base = f"http://{settings.host}:{settings.gateway_port}"
    return f"""
feedmesh is ready after {seconds:.1f} s at [bold]{base}[/bold]  (interface: {base}/docs)
demo login: [bold]{DEMO_USERNAME}[/bold] / [bold]{DEMO_PASSWORD}[/bold]

  TOKEN=$(curl -s {base}/auth/token -d username={DEMO_USERNAME} -d password={DEMO_PASSWORD} \\
    | python3 -c 'import json, sys; print(json.load(sys.stdin)\\["access_token"])')
  curl -s {base}/feed?limit=3 -H "Authorization: Bearer $TOKEN" | python3 -m json.tool
  grpcurl -plaintext {settings.host}:{settings.candidate_port} list
{_telemetry(settings, base)}
Ctrl-C stops everything; the data stays in {settings.data_dir}/
"""


def _telemetry(settings: Settings, base: str) -> str:
    """How to look inside, a line each."""
    lines = [f"metrics: {base}/metrics"]
    if settings.metrics_port:
        others = f"http://{settings.host}:{settings.metrics_port}/metrics"
        lines[0] += f", of the other processes: {others} and the ports after it"
    if settings.debug_traces:
        lines.append(
            "traces:  [bold].venv/bin/feedmesh trace[/bold] lists the last ones, "
            "[bold].venv/bin/feedmesh trace TRACE_ID[/bold] draws one"
        )
    return "\n" + "\n".join(lines)


def main(settings: Settings, backends: Backends, processes: Processes) -> None:
    """Runs the launcher; a start that cannot be says why on one line and exits with 1."""
    console = Console(highlight=False, soft_wrap=True)
    unset = _DEFAULTS.keys() - settings.model_fields_set
    settings = settings.model_copy(update={name: _DEFAULTS[name] for name in unset})
    logs.setup(settings)
    telemetry.become_service("launcher")
    try:
        uvloop.run(launch(settings, console, backends, processes))
    except (OSError, FeedError) as error:
        sys.exit(f"feedmesh cannot start: {error or 'it was not ready in time'}")
    except KeyboardInterrupt:
        sys.exit(130)
