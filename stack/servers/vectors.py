"""The embedded vector engine, where a Qdrant would be: no registry has Qdrant's server."""

import sys
from importlib.metadata import version

from stack.daemon import Server
from stack.place import Place
from stores.vectors.edge import EdgeVectorStore


async def server(place: Place) -> Server:
    """`stores.vectors.edge_server` on a unix socket."""
    folder = place.data("vectors")
    socket = folder / "vectors.sock"

    async def is_healthy() -> bool:
        store = EdgeVectorStore(f"unix:{socket}")
        try:
            return await store.count() >= 0
        finally:
            await store.close()

    return Server(
        name="vectors",
        version=f"qdrant-edge {version('qdrant-edge-py')}",
        command=[
            *(sys.executable, "-m", "stores.vectors.edge_server"),
            *("--socket", str(socket), "--data", str(folder / "data")),
        ],
        url=f"edge://{socket}",
        ports=[],
        is_healthy=is_healthy,
        # It is one of ours: its spans go where those of `make run-stack` go.
        env={"FEED_DEBUG_TRACES": "1", "FEED_DATA_DIR": str(place.folder.parent)},
    )
