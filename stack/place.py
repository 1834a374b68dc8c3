"""Where a stack is: its ports, its folders, and the cache that its servers are installed into."""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

from mesh.settings import Settings


class Port(IntEnum):
    """What listens where, counted from FEED_STACK_PORT."""

    VALKEY = 0
    TIDB = 1
    TIDB_STATUS = 2
    KAFKA = 3
    KAFKA_CONTROLLER = 4
    ZOOKEEPER = 5
    PINOT_CONTROLLER = 6
    PINOT_BROKER = 7
    PINOT_SERVER = 8
    PINOT_SERVER_ADMIN = 9
    MINIO = 10
    FEAST = 11
    TRITON = 12
    PINOT_SERVER_GRPC = 13
    VECTORS = 14


@dataclass(frozen=True, slots=True)
class Place:
    """One stack's own ports and folders; two stacks on one machine differ in both.

    Args:
        host: What servers listen on; loopback, or another address of this machine.
        first_port: See `Port`.
        folder: Data, logs and process ids.
        cache: What is installed, shared by all checkouts.
    """

    host: str
    first_port: int
    folder: Path
    cache: Path

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The place that the settings give."""
        return cls(
            settings.stack_host,
            settings.stack_port,
            settings.data_dir.resolve() / "stack",
            settings.stack_cache.expanduser(),
        )

    def port(self, port: Port) -> int:
        """The port's number."""
        return self.first_port + port

    def data(self, server: str) -> Path:
        """The server's own folder."""
        return self.folder / server

    def log_file(self, server: str) -> Path:
        """What the server prints."""
        return self.folder / "logs" / f"{server}.log"
