"""The whole stack: which servers there are, in which order they start, and what finds them."""

import asyncio
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from stack.daemon import Daemon, Server
from stack.place import Place

# Each a module of `stack.servers`.
SERVERS = ("valkey", "tidb", "kafka", "zookeeper", "pinot", "minio", "feast", "triton", "vectors")
_LAST_LINES, _LAST_COLUMNS = 20, 300
# The setting that each server's URL goes to.
_SETTINGS = {
    "valkey": "FEED_REDIS_URL",
    "tidb": "FEED_SQL_URL",
    "kafka": "FEED_EVENTS_URL",
    "pinot": "FEED_IMPRESSIONS_URL",
    "vectors": "FEED_VECTORS_URL",
    "feast": "FEED_FEATURES_URL",
    "triton": "FEED_MODEL_URL",
    "minio": "FEED_MEDIA_URL",
}


async def describe(place: Place, names: Sequence[str] = SERVERS) -> dict[str, Server]:
    """The servers by name; installs what is not installed yet, all at once.

    Raises:
        FailedPrecondition: One does not install.
    """
    modules: list[Any] = [importlib.import_module(f"stack.servers.{name}") for name in names]
    servers: list[Server] = await asyncio.gather(*(module.server(place) for module in modules))
    return dict(zip(names, servers, strict=True))


def daemons(place: Place, servers: Mapping[str, Server]) -> dict[str, Daemon]:
    """What runs the servers, by name."""
    return {name: Daemon(server, place) for name, server in servers.items()}


async def start(running: Mapping[str, Daemon]) -> None:
    """Starts all, each once those that it comes after are healthy, and prepares them.

    Raises:
        FailedPrecondition, Unavailable: One does not start; the others are left as they are.
    """
    started = {name: asyncio.Event() for name in running}

    async def bring_up(name: str, daemon: Daemon) -> None:
        # One that is not to be started here is taken to run.
        for before in started.keys() & daemon.server.after:
            await started[before].wait()
        await daemon.start()
        started[name].set()

    await asyncio.gather(*(bring_up(name, daemon) for name, daemon in running.items()))


async def stop(running: Mapping[str, Daemon]) -> None:
    """Stops all, those first that come after others."""
    left = dict(running)
    while left:
        needed = {before for daemon in left.values() for before in daemon.server.after}
        last = {name: daemon for name, daemon in left.items() if name not in needed}
        await asyncio.gather(*(daemon.stop() for daemon in last.values()))
        left = {name: daemon for name, daemon in left.items() if name in needed}


def print_logs(running: Mapping[str, Daemon]) -> None:
    """The end of what each has printed, where something went wrong."""
    for name, daemon in running.items():
        if daemon.log_file.exists():
            lines = daemon.log_file.read_text(errors="replace").splitlines()
            last = [line[:_LAST_COLUMNS] for line in lines[-_LAST_LINES:]]
            print(f"--- the end of {name}'s log", *last, sep="\n", flush=True)


def environment(servers: Mapping[str, Server]) -> dict[str, str]:
    """The FEED_* variables with which the mesh uses these servers."""
    urls = {_SETTINGS[name]: server.url for name, server in servers.items() if name in _SETTINGS}
    return urls | {key: value for each in servers.values() for key, value in each.settings.items()}
