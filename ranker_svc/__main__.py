"""Runs the ranker service alone: `python -m ranker_svc`."""

from mesh.lifecycle import until_stopped
from mesh.process import run
from mesh.settings import Settings
from ranker_svc.service import server
from stores.connect import Connections


async def serve(settings: Settings) -> None:
    """Serves until the process is told to stop."""
    async with Connections(settings) as stores, server(settings, stores):
        await until_stopped()


if __name__ == "__main__":
    run("ranker_svc", serve)
