"""The embedded vector engine, where a Qdrant would be: no registry has Qdrant's server."""

import sys
from importlib.metadata import version

from stack.daemon import Server
from stack.place import Place, Port
from stores.vectors.edge import EdgeVectorStore


async def server(place: Place) -> Server:
    """`stores.vectors.edge_server`, over TCP."""
    port = place.port(Port.VECTORS)
    target = f"{place.host}:{port}"

    async def is_healthy() -> bool:
        store = EdgeVectorStore(target)
        try:
            return await store.count() >= 0
        finally:
            await store.close()

    return Server(
        name="vectors",
        version=f"qdrant-edge {version('qdrant-edge-py')}",
        command=[
            *(sys.executable, "-m", "stores.vectors.edge_server"),
            *("--listen", target, "--data", str(place.data("vectors") / "data")),
        ],
        url=f"edge+tcp://{target}",
        ports=[port],
        is_healthy=is_healthy,
        # It is one of ours: its spans go where those of `make run-stack` go.
        env={"FEED_DEBUG_TRACES": "1", "FEED_DATA_DIR": str(place.folder.parent)},
    )
