"""Triton with the ranking model: `stack.triton`, as `make triton` runs it."""

import sys

from stack.daemon import Server
from stack.place import HOST, Place, Port
from stack.triton.install import install
from stack.triton.server import MODEL, serves

_VERSION = "2.51"


async def server(place: Place) -> Server:
    """A Triton that serves the heuristic, until there is a trained model."""
    await install(place.cache)
    port = place.port(Port.TRITON)

    async def is_healthy() -> bool:
        return await serves(port)

    return Server(
        name="triton",
        version=_VERSION,
        command=[sys.executable, "-m", "stack.triton", "--port", str(port)],
        url=f"triton://{HOST}:{port}/{MODEL}",
        ports=[port],
        is_healthy=is_healthy,
        # Its model repository goes below its data folder.
        env={"FEED_DATA_DIR": str(place.data("triton")), "FEED_STACK_CACHE": str(place.cache)},
    )
