"""Runs the hydrator service alone: `python -m hydrator_svc`."""

from hydrator_svc.service import server
from mesh.lifecycle import until_stopped
from mesh.process import run
from mesh.settings import Settings
from stores.connect import Connections


async def serve(settings: Settings) -> None:
    """Serves until the process is told to stop."""
    async with Connections(settings) as stores, server(settings, stores):
        await until_stopped()


if __name__ == "__main__":
    run("hydrator_svc", serve)
