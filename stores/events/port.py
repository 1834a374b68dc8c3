"""The event log: what happened, kept in order, delivered at least once."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from google.protobuf.message import Message


class Topic(StrEnum):
    """The topics; a message that cannot be processed goes to `<topic>.dead`."""

    POSTS = "feed.posts.v1"
    GRAPH = "feed.graph.v1"
    ENGAGEMENTS = "feed.engagements.v1"
    IMPRESSIONS = "feed.impressions.v1"
    SERVED = "feed.served.v1"


@dataclass(frozen=True, slots=True)
class Event:
    """Something to announce. `key` orders: events of one key stay in order."""

    topic: Topic
    key: int
    message: Message


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """An event as it goes on the wire.

    `value` is canonical protobuf JSON with proto field names; `headers` carry `event_id` and the
    W3C trace context of whoever announced it.
    """

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """A delivered event. `position` is the adapter's own and unique within the topic."""

    topic: str
    key: str
    value: bytes
    position: str
    headers: Mapping[str, str] = field(default_factory=dict)
    # How often it was delivered to the group before, as far as the log counts that (Kafka does
    # not); 0 the first time.
    redeliveries: int = 0
    # What the conventions want spans to say of where it was.
    attributes: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def event_id(self) -> str:
        """The announcer's id; equal for repeats of one event."""
        return self.headers.get("event_id", self.position)


class Subscription(Protocol):
    """One group's reading of some topics. Records read and not committed come again.

    A failed `commit` may be tried again on the same subscription.
    """

    async def read(self, max_records: int, wait_s: float) -> list[Record]:
        """Up to `max_records`, waiting at most `wait_s` seconds for the first; may be empty.

        After a restart the group's uncommitted records come first, oldest first.
        """
        ...

    def holding(self) -> AbstractAsyncContextManager[None]:
        """A block that handles and commits what was read last.

        Where another member gets these records before they are committed, the block is cancelled
        and ends without an error: handled here and there at once, their effects might mix.
        """
        ...

    async def commit(self, records: Sequence[Record]) -> None:
        """Marks the records as done for this group.

        A record that is done may come again while one before it, of the same key, is not.
        """
        ...

    async def close(self) -> None:
        """Leaves the group; its uncommitted records come to another member or at the next start."""
        ...


class EventLog(Protocol):
    """Raises `mesh.errors.Unavailable` when the log cannot be reached."""

    @property
    def system(self) -> str:
        """What it is, as the conventions for spans call it: redis, kafka."""
        ...

    @property
    def server(self) -> Mapping[str, str | int]:
        """Where it is, for spans: `server.address` and `server.port`."""
        ...

    async def publish(self, records: Sequence[OutgoingRecord]) -> None:
        """Appends the records in order; returns when the log has acknowledged every one.

        They are sent within PRODUCER spans (`stores.events.spans`), whose context they then carry.
        """
        ...

    async def subscribe(self, group: str, topics: Sequence[Topic]) -> Subscription:
        """Joins `group`, which begins at the oldest kept record of each topic."""
        ...

    async def bury(self, record: Record, reason: str) -> None:
        """Appends the record to `<topic>.dead` with the header `dead_reason`."""
        ...

    async def lag(self, group: str, topic: Topic) -> int:
        """Records of the topic that the group has not committed yet."""
        ...

    async def close(self) -> None: ...
