"""Pinot: controller, broker and server in one JVM, from Maven Central.

0.11 is the newest whose parts are all there. It listens on loopback only, except for the port on
which its broker asks its server, for which it has no such setting.
"""

import asyncio
from pathlib import Path

import httpx

from stack import maven
from stack.daemon import Server
from stack.maven import Jar
from stack.place import Place, Port
from stores.events.port import Topic
from stores.impressions.pinot_admin import make_table
from stores.impressions.pinot_table import TABLE

_VERSION = "0.11.0"
_PARTS = (
    *("controller", "broker", "server", "minion"),
    *("kafka-2.0", "json", "avro", "csv", "yammer"),
)
_JARS = (
    # It depends on far more than it needs to start the others.
    Jar(f"org.apache.pinot:pinot-tools:{_VERSION}", alone=True),
    *(Jar(f"org.apache.pinot:pinot-{part}:{_VERSION}") for part in _PARTS),
    Jar("info.picocli:picocli:4.6.1"),
)
_CLUSTER = "stack"
# Of Java's own packages, what its libraries reach into.
_OPENED = ("java.nio", "sun.nio.ch", "java.lang", "java.util", "java.lang.reflect")
LOG = """<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error">
  <Appenders>
    <Console name="stdout"><PatternLayout pattern="%d{ISO8601} %p %c{1} %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="org.apache.kafka.clients.consumer.ConsumerConfig" level="error"/>
    <Root level="warn"><AppenderRef ref="stdout"/></Root>
  </Loggers>
</Configuration>
"""


async def jars(place: Place) -> Path:
    """The folder of Pinot's jars, with ZooKeeper's among them."""
    return await maven.installed(place, "pinot", _JARS)


async def server(place: Place) -> Server:
    """All of Pinot, with the table of impressions, which it reads from the stack's Kafka."""
    lib, folder = await jars(place), place.data("pinot")
    await asyncio.to_thread(_configure, folder, place)
    controller, broker, admin = (
        f"http://{place.host}:{place.port(port)}"
        for port in (Port.PINOT_CONTROLLER, Port.PINOT_BROKER, Port.PINOT_SERVER_ADMIN)
    )

    async def is_healthy() -> bool:
        async with httpx.AsyncClient(timeout=1) as client:
            answers = [await client.get(f"{each}/health") for each in (controller, broker, admin)]
            return all(answer.status_code == 200 for answer in answers)

    async def prepare() -> None:
        kafka = [f"{place.host}:{place.port(Port.KAFKA)}"]
        await make_table("0.11", controller, broker, kafka, Topic.IMPRESSIONS)

    return Server(
        name="pinot",
        version=_VERSION,
        command=[
            *("java", "-Xms64m", "-Xmx384m", "-XX:MaxDirectMemorySize=256m", "-XX:+UseSerialGC"),
            "-XX:TieredStopAtLevel=1",
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
            "-Dlog4j2.configurationFile=log4j2.xml",
            # What a killed one has left in ZooKeeper is gone so soon.
            *("-Dzk.session.timeout=6000", "-Dpinot.admin.system.exit=false"),
            *("-Dplugins.dir=plugins", "-cp", f"{lib}/*"),
            *("org.apache.pinot.tools.admin.PinotAdministrator", "StartServiceManager"),
            *("-zkAddress", f"{place.host}:{place.port(Port.ZOOKEEPER)}", "-clusterName", _CLUSTER),
            *("-port", "-1", "-bootstrapConfigPaths"),
            *("controller.conf", "broker.conf", "server.conf"),
        ],
        url=f"pinot://{place.host}:{place.port(Port.PINOT_BROKER)}/{TABLE}",
        ports=[
            place.port(port)
            for port in (
                *(Port.PINOT_CONTROLLER, Port.PINOT_BROKER),
                *(Port.PINOT_SERVER, Port.PINOT_SERVER_ADMIN),
            )
        ],
        is_healthy=is_healthy,
        after=("zookeeper", "kafka"),
        prepare=prepare,
        ready_within_s=180,
    )


def _configure(folder: Path, place: Place) -> None:
    port, data = place.port, folder / "data"
    (folder / "plugins").mkdir(parents=True, exist_ok=True)
    (folder / "log4j2.xml").write_text(LOG)
    controller = port(Port.PINOT_CONTROLLER)
    (folder / "controller.conf").write_text(f"""pinot.service.role=CONTROLLER
pinot.cluster.name={_CLUSTER}
controller.helix.cluster.name={_CLUSTER}
controller.zk.str={place.host}:{port(Port.ZOOKEEPER)}
controller.host={place.host}
controller.port={controller}
controller.access.protocols=http
controller.access.protocols.http.host={place.host}
controller.access.protocols.http.port={controller}
controller.data.dir={data / "controller"}
""")
    broker = port(Port.PINOT_BROKER)
    (folder / "broker.conf").write_text(f"""pinot.service.role=BROKER
pinot.cluster.name={_CLUSTER}
pinot.broker.hostname={place.host}
pinot.broker.client.queryPort={broker}
pinot.broker.client.access.protocols=http
pinot.broker.client.access.protocols.http.host={place.host}
pinot.broker.client.access.protocols.http.port={broker}
""")
    admin = port(Port.PINOT_SERVER_ADMIN)
    (folder / "server.conf").write_text(f"""pinot.service.role=SERVER
pinot.cluster.name={_CLUSTER}
pinot.server.netty.host={place.host}
pinot.server.netty.port={port(Port.PINOT_SERVER)}
pinot.server.grpc.enable=false
pinot.server.grpc.port={port(Port.PINOT_SERVER_GRPC)}
pinot.server.adminapi.port={admin}
pinot.server.adminapi.access.protocols=http
pinot.server.adminapi.access.protocols.http.host={place.host}
pinot.server.adminapi.access.protocols.http.port={admin}
pinot.server.instance.dataDir={data / "segments"}
pinot.server.instance.segmentTarDir={data / "tars"}
""")
