"""The gateway as a process of its own."""

from gateway.server import serve_http
from mesh.process import run
from mesh.settings import Settings
from stores.connect import Connections


async def serve(settings: Settings) -> None:
    """Serves until the process is told to stop."""
    async with Connections(settings) as stores:
        await stores.until_migrated()
        await serve_http(settings, stores)


if __name__ == "__main__":
    run("gateway", serve, hosts_traces=True)
