"""TiDB with its embedded storage, from the Go module proxy."""

from pathlib import Path

import httpx

from stack import golang
from stack.daemon import Server
from stack.place import HOST, Place, Port

_PACKAGE = "github.com/pingcap/tidb/cmd/tidb-server"
_GO_MOD = (Path(__file__).parent / "go.mod").read_text()
_VERSION = "8.5 (2024-11-25)"


async def server(place: Place) -> Server:
    """One node that keeps its data in a folder."""
    program = await golang.built(place, _PACKAGE, _GO_MOD)
    port, status = place.port(Port.TIDB), place.port(Port.TIDB_STATUS)

    async def is_healthy() -> bool:
        async with httpx.AsyncClient(timeout=1) as client:
            return (await client.get(f"http://{HOST}:{status}/status")).status_code == 200

    return Server(
        name="tidb",
        version=_VERSION,
        command=[
            *(str(program), "-store", "unistore", "-path", str(place.data("tidb") / "data")),
            *("-host", HOST, "-P", str(port), "-status-host", HOST, "-status", str(status)),
            *("-L", "error"),
        ],
        url=f"mysql+aiomysql://root@{HOST}:{port}/feed?charset=utf8mb4",
        ports=[port, status],
        is_healthy=is_healthy,
    )
