"""What every part of the event log on Kafka shares: names, topics, deadlines and errors."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from mesh.errors import FailedPrecondition, Unavailable
from stores.events.port import Topic

# It reports each failed attempt to connect, ten a second and client. What comes of them is in our
# errors.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

# Asking a broker for something small.
ASK_S = 5.0
_DAY_MS = 24 * 3600 * 1000
DEAD = ".dead"


@dataclass(frozen=True, slots=True)
class TopicShape:
    """How a topic is made; one that is there already is left as it is.

    Its replicas are as many as the brokers' `default.replication.factor` says.
    """

    partitions: int
    keep_days: int


# As many members of a group share a topic as it has partitions. Nobody reads a dead topic in a
# group, and its records are wanted until somebody has found the time.
SHAPES: Mapping[str, TopicShape] = {
    Topic.POSTS: TopicShape(8, 7),
    Topic.GRAPH: TopicShape(8, 7),
    Topic.ENGAGEMENTS: TopicShape(8, 7),
    # Each partition is a consuming segment of Pinot's, which keeps impressions for two days itself.
    Topic.IMPRESSIONS: TopicShape(4, 3),
    # Some 30 KB each; the log of feeds keeps them.
    Topic.SERVED: TopicShape(8, 3),
    **{f"{topic}{DEAD}": TopicShape(1, 30) for topic in Topic},
}


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where an installation's topics and groups are.

    Args:
        servers: "host:port" of some brokers; they tell the others.
        prefix: What the names of its topics and groups begin with, up to a dot; installations with
            different ones share brokers.
    """

    servers: tuple[str, ...]
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address of `kafka://host:port[,host:port][/prefix]`.

        Raises:
            ValueError: It has no such form.
        """
        parts = urlsplit(url)
        servers = tuple(filter(None, parts.netloc.split(",")))
        if parts.scheme != "kafka" or not servers or parts.query or "/" in parts.path.strip("/"):
            raise ValueError(f"{url} is not kafka://host:port[,host:port][/prefix]")
        return cls(servers, parts.path.strip("/"))

    def named(self, name: str) -> str:
        """What the brokers call one of our topics or groups."""
        return f"{self.prefix}.{name}" if self.prefix else str(name)

    @property
    def server(self) -> dict[str, str | int]:
        """`server.address` and `server.port` of the first broker."""
        host, _, port = self.servers[0].rpartition(":")
        return {"server.address": host, "server.port": int(port)}


@asynccontextmanager
async def within(limit_s: float) -> AsyncIterator[None]:
    """Ends the block after so many seconds, and turns Kafka's errors into ours.

    Raises:
        Unavailable: Kafka is away, late, or refuses.
    """
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise Unavailable(f"Kafka did not answer within {limit_s:g} s") from None
    except (KafkaError, OSError) as error:
        raise Unavailable(f"Kafka: {error}") from error


async def make_topics(
    admin: AIOKafkaAdminClient, address: KafkaAddress, topics: Sequence[str]
) -> None:
    """Makes those that are missing, and returns when they have leaders.

    Raises:
        FailedPrecondition: Kafka does not let us; its administrator has to make them.
        Unavailable: Kafka is still starting.
    """
    shapes = {address.named(topic): SHAPES[topic] for topic in topics}
    try:
        answer = await admin.create_topics([_new(name, shape) for name, shape in shapes.items()])
    except AttributeError:
        # How this client puts it.
        raise Unavailable("Kafka has no controller yet") from None
    for name, code, *_ in answer.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise FailedPrecondition(f"Kafka does not make {name}: {for_code(code).__name__}")
    while not all(map(_has_leaders, await admin.describe_topics(list(shapes)))):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def _new(name: str, shape: TopicShape) -> NewTopic:
    keep_ms = shape.keep_days * _DAY_MS
    topic = NewTopic(name, shape.partitions, 1, topic_configs={"retention.ms": str(keep_ms)})
    # The brokers' default, which the constructor refuses beside a number of partitions.
    topic.replication_factor = -1
    return topic


def _has_leaders(topic: Mapping[str, Any]) -> bool:
    # A client that learns of a topic before that would wait for its next look at all topics.
    partitions = topic["partitions"]
    return bool(partitions) and all(each["leader"] >= 0 for each in partitions)


def locate(partition: int, offset: int) -> dict[str, str | int]:
    """Where a record is, for spans. Its key stays out of them: it is a person's id."""
    return {"messaging.destination.partition.id": str(partition), "messaging.kafka.offset": offset}
