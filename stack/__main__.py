"""`make stack` and its kin: starts, stops and shows the real servers."""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping

import psutil
from rich.console import Console
from rich.table import Table

from mesh import logs
from mesh.errors import FeedError
from mesh.settings import Settings
from stack.daemon import Daemon, memory_bytes
from stack.place import Place
from stack.stack import SERVERS, daemons, describe, environment, start, stop

_MIB = 2**20


async def run(options: argparse.Namespace, settings: Settings, console: Console) -> None:
    """Does what the command line asks for."""
    place = Place.of(settings)
    began = time.monotonic()
    if options.what == "up":
        console.print(f"installing into {place.cache}, unless it is there ...")
    servers = await describe(place, options.servers or SERVERS)
    running = daemons(place, servers)
    if options.what == "up":
        console.print(f"installed after {time.monotonic() - began:.0f} s; starting ...")
        began = time.monotonic()
        await start(running)
        console.print(f"all healthy after {time.monotonic() - began:.0f} s")
    elif options.what == "down":
        await stop(running)
    elif options.what == "env":
        for name, value in environment(servers).items():
            console.print(f"export {name}='{value}'", soft_wrap=True)
        return
    console.print(await _table(running, _mesh_memory(settings)))


async def _table(running: Mapping[str, Daemon], mesh_bytes: int) -> Table:
    table = Table("server", "version", "state", "ports", "memory", "log", title="feedmesh's stack")
    for name, daemon in running.items():
        if daemon.process is None:
            state = "stopped"
        else:
            state = "healthy" if await daemon.is_healthy() else "unhealthy"
        memory = f"{daemon.memory_bytes / _MIB:,.0f} MiB" if daemon.process else ""
        ports = ", ".join(map(str, daemon.server.ports))
        table.add_row(name, daemon.server.version, state, ports, memory, str(daemon.log_file))
    if mesh_bytes:
        table.add_row("mesh", "", "running", "", f"{mesh_bytes / _MIB:,.0f} MiB", "")
    total = mesh_bytes + sum(daemon.memory_bytes for daemon in running.values())
    table.add_row("", "", "", "", f"{total / _MIB:,.0f} MiB", "", style="bold")
    return table


def _mesh_memory(settings: Settings) -> int:
    """Of the processes of `make run-stack`; 0 while it does not run."""
    try:
        launcher = psutil.Process(int((settings.data_dir / "launcher.lock").read_text()))
    except (OSError, ValueError, psutil.NoSuchProcess):
        return 0
    return memory_bytes(launcher) if "stack.run" in launcher.cmdline() else 0


def main() -> None:
    """Runs it; what cannot be is said on one line, with exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m stack")
    parser.add_argument("what", choices=["up", "down", "status", "env"])
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=f"of {', '.join(SERVERS)}")
    options = parser.parse_args()
    if unknown := set(options.servers) - set(SERVERS):
        parser.error(f"no such server: {', '.join(unknown)}")
    settings, console = Settings(), Console(highlight=False)
    logs.setup(settings)
    try:
        asyncio.run(run(options, settings, console))
    except (OSError, FeedError) as error:
        sys.exit(f"the stack cannot {options.what}: {error}")


if __name__ == "__main__":
    main()
