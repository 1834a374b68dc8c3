"""Triton with the ranking model: `stack.triton`, as `make triton` runs it."""

import sys

from mesh.settings import Settings
from stack.daemon import Server
from stack.place import Place, Port
from stack.triton.install import install
from stack.triton.server import MODEL, serves

_VERSION = "2.51"


async def server(place: Place) -> Server:
    """A Triton that serves what the model registry serves, or the heuristic."""
    await install(place.cache)
    port = place.port(Port.TRITON)
    repository = {"FEED_TRITON_REPOSITORY": str(place.data("triton") / "models")}
    # The mesh's, whose data folder is not Triton's own.
    registry_url = Settings().registry_url.replace("{data}", str(place.folder.parent))

    async def is_healthy() -> bool:
        return await serves(port, place.host)

    return Server(
        name="triton",
        version=_VERSION,
        command=[
            *(sys.executable, "-m", "stack.triton"),
            *("--host", place.host, "--port", str(port)),
        ],
        url=f"triton://{place.host}:{port}/{MODEL}",
        ports=[port],
        is_healthy=is_healthy,
        env={
            "FEED_DATA_DIR": str(place.data("triton")),
            "FEED_STACK_CACHE": str(place.cache),
            "FEED_REGISTRY_URL": registry_url,
            **repository,
        },
        settings=repository,
    )
