"""Kafka in KRaft mode, one node that is broker and controller, from Maven Central."""

import asyncio
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient

from stack import maven
from stack.daemon import Server
from stack.installing import run
from stack.maven import Jar
from stack.place import Place, Port
from stores.events.kafka import KafkaEventLog
from stores.events.kafka_client import KafkaAddress
from stores.events.port import Topic

_VERSION = "4.4.0"
_JARS = (
    Jar(f"org.apache.kafka:kafka_2.13:{_VERSION}"),
    Jar("org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"),
)
_PORTS = (Port.KAFKA, Port.KAFKA_CONTROLLER)
# A UUID, as Kafka writes one.
_CLUSTER_ID = "ZmVlZG1lc2gtc3RhY2stMQ"
_LOG = """status=error
rootLogger.level=warn
rootLogger.appenderRef.stdout.ref=stdout
appender.stdout.type=Console
appender.stdout.name=stdout
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=%d{ISO8601} %p %c{1} %m%n
"""


async def server(place: Place) -> Server:
    """One broker that keeps what it has acknowledged through a kill -9 of its own.

    (Not through a power cut: one node alone writes to the disk when the kernel does.)
    """
    jars = await maven.installed(place, "kafka", _JARS)
    at = f"{place.host}:{place.port(Port.KAFKA)}"
    folder = place.data("kafka")
    await asyncio.to_thread(_configure, folder, _properties(place))
    await _format(folder, jars)

    async def is_healthy() -> bool:
        admin = AIOKafkaAdminClient(bootstrap_servers=at, request_timeout_ms=1_000)
        try:
            await admin.start()
            return bool(await admin.describe_cluster())
        finally:
            await admin.close()

    async def prepare() -> None:
        log = KafkaEventLog(KafkaAddress((at,)))
        try:
            await log.make_topics(list(Topic))
        finally:
            await log.close()

    return Server(
        name="kafka",
        version=_VERSION,
        command=[
            *("java", "-Xms64m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            "-Dlog4j2.configurationFile=log4j2.properties",
            *("-cp", f"{jars}/*", "kafka.Kafka", "server.properties"),
        ],
        url=f"kafka://{at}",
        ports=[place.port(port) for port in _PORTS],
        is_healthy=is_healthy,
        prepare=prepare,
    )


def _properties(place: Place) -> str:
    at, controller = (f"{place.host}:{place.port(each)}" for each in _PORTS)
    return f"""process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
listeners=PLAINTEXT://{at},CONTROLLER://{controller}
advertised.listeners=PLAINTEXT://{at}
controller.listener.names=CONTROLLER
log.dirs={place.data("kafka") / "data"}
# Topics come with the partitions and the retention that feedmesh states, or not at all.
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# A broker that was killed is let in again once its old session has ended.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
num.network.threads=2
num.io.threads=2
background.threads=2
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=4194304
# One index file a segment is set aside in full: 10 MiB each by default.
log.index.size.max.bytes=1048576
log.segment.bytes=67108864
"""


def _configure(folder: Path, properties: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.properties").write_text(properties)
    (folder / "log4j2.properties").write_text(_LOG)


async def _format(folder: Path, jars: Path) -> None:
    """Gives the data folder the cluster's id, unless it has it."""
    if not (folder / "data" / "meta.properties").exists():
        await run(
            *("java", "-Xmx128m", "-Dlog4j2.configurationFile=log4j2.properties"),
            *("-cp", f"{jars}/*", "kafka.tools.StorageTool", "format"),
            *("-t", _CLUSTER_ID, "-c", "server.properties"),
            cwd=folder,
        )
