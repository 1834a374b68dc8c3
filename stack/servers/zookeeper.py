"""ZooKeeper, which only Pinot needs, from Pinot's own jars."""

import asyncio

from stack.daemon import Server
from stack.place import Place, Port
from stack.servers.pinot import LOG, jars

_VERSION = "3.5.8"


async def server(place: Place) -> Server:
    """One server."""
    port = place.port(Port.ZOOKEEPER)
    lib = await jars(place)
    await asyncio.to_thread(_configure, place)

    async def is_healthy() -> bool:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(place.host, port)
            try:
                writer.write(b"ruok")
                return await reader.read() == b"imok"
            finally:
                writer.close()

    return Server(
        name="zookeeper",
        version=_VERSION,
        command=[
            *("java", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            *("-Dlog4j2.configurationFile=log4j2.xml", "-cp", f"{lib}/*"),
            *("org.apache.zookeeper.server.ZooKeeperServerMain", "zoo.cfg"),
        ],
        url=f"{place.host}:{port}",
        ports=[port],
        is_healthy=is_healthy,
    )


def _configure(place: Place) -> None:
    folder = place.data("zookeeper")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log4j2.xml").write_text(LOG)
    (folder / "zoo.cfg").write_text(f"""tickTime=1000
dataDir={folder / "data"}
clientPort={place.port(Port.ZOOKEEPER)}
clientPortAddress={place.host}
admin.enableServer=false
4lw.commands.whitelist=ruok
autopurge.purgeInterval=1
# It may have been killed before its first snapshot.
snapshot.trust.empty=true
""")
