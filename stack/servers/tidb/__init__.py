"""TiDB with its embedded storage, from the Go module proxy."""

from pathlib import Path

import aiomysql
import httpx

from stack import golang
from stack.daemon import Server
from stack.place import Place, Port

_PACKAGE = "github.com/pingcap/tidb/cmd/tidb-server"
_GO_MOD = (Path(__file__).parent / "go.mod").read_text()
_VERSION = "8.5 (2024-11-25)"


DATABASE = "feed"


async def server(place: Place) -> Server:
    """One node that keeps its data in a folder."""
    program = await golang.built(place, _PACKAGE, _GO_MOD)
    port, status = place.port(Port.TIDB), place.port(Port.TIDB_STATUS)

    async def is_healthy() -> bool:
        async with httpx.AsyncClient(timeout=1) as client:
            return (await client.get(f"http://{place.host}:{status}/status")).status_code == 200

    async def prepare() -> None:
        """Makes the database; its tables are whoever starts the mesh's (stores/sql/migrate.py)."""
        connection = await aiomysql.connect(
            host=place.host, port=port, user="root", connect_timeout=5
        )
        try:
            async with connection.cursor() as cursor:
                # By default it takes what the machine has, as the only one on it.
                await cursor.execute("SET GLOBAL tidb_server_memory_limit = '1GB'")
                await cursor.execute("SET GLOBAL tidb_enable_gogc_tuner = OFF")
                if not await cursor.execute(f"SHOW DATABASES LIKE '{DATABASE}'"):
                    await cursor.execute(
                        f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
                    )
        finally:
            connection.close()

    return Server(
        name="tidb",
        version=_VERSION,
        command=[
            *(str(program), "-store", "unistore", "-path", str(place.data("tidb") / "data")),
            *(
                "-host",
                place.host,
                "-P",
                str(port),
                "-status-host",
                place.host,
                "-status",
                str(status),
            ),
            *("-L", "error"),
        ],
        url=f"mysql+aiomysql://root@{place.host}:{port}/{DATABASE}?charset=utf8mb4",
        ports=[port, status],
        is_healthy=is_healthy,
        prepare=prepare,
    )
