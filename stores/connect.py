"""The one place where store clients are built. A URL's scheme picks the adapter.

Adapters are imported when they are asked for, so that a service loads only what it uses.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from mesh.settings import Settings
from stores.embedder.port import Embedder
from stores.events.port import EventLog
from stores.features.port import FeaturePusher, FeatureStore
from stores.graph.port import GraphStore
from stores.impressions.port import ImpressionStore, RecentSeen
from stores.leases.port import Leases
from stores.log.port import FeedLog
from stores.mailboxes.port import MailboxStore
from stores.media.port import MediaStore, UploadStore
from stores.outbox.port import Outbox
from stores.posts.port import PostStore
from stores.snapshots.port import SnapshotStore
from stores.users.port import UserStore
from stores.vectors.port import VectorStore

T = TypeVar("T")

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from stores.features.feast_client import FeastClient
    from stores.media.s3 import S3MediaStore
    from stores.registry.folder import FolderRegistry
    from stores.sql.database import Database


class Connections:
    """The stores of one process, each built at its first use and closed with the context.

    Args:
        settings: The FEED_*_URL settings choose the adapters.

    Raises:
        ValueError: A setting's scheme is not known; the message names the setting.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def until_migrated(self) -> None:
        """Returns when the database has this code's schema, or a newer one."""
        from stores.sql.schema import until_migrated

        await until_migrated(self._database)

    def users(self) -> UserStore:
        from stores.users.sql import SqlUserStore

        return SqlUserStore(self._database)

    def posts(self) -> PostStore:
        from stores.posts.sql import SqlPostStore

        return SqlPostStore(self._database)

    def graph(self) -> GraphStore:
        self._expect("graph_url", "sql", "dgraph")
        if self._scheme("graph_url") == "dgraph":
            return self._dgraph
        from stores.graph.sql import SqlGraphStore

        return SqlGraphStore(self._database)

    def impressions(self) -> ImpressionStore:
        self._expect("impressions_url", "sql", "pinot")
        if self._scheme("impressions_url") == "pinot":
            return self._pinot
        from stores.impressions.sql import SqlImpressionStore

        return SqlImpressionStore(self._database)

    def outbox(self) -> Outbox:
        from stores.outbox.sql import SqlOutbox

        return SqlOutbox(self._database)

    def leases(self) -> Leases:
        from stores.leases.sql import SqlLeases

        return SqlLeases(self._database)

    def mailboxes(self) -> MailboxStore:
        from stores.mailboxes.redis import RedisMailboxStore

        return RedisMailboxStore(self.redis)

    def recent_seen(self) -> RecentSeen:
        from stores.impressions.redis import RedisRecentSeen

        return RedisRecentSeen(self.redis)

    def features(self) -> FeatureStore:
        """For serving: from the feature server, where there is one."""
        from stores.features.feast import FeastFeatureStore

        if self._feast is None:
            return self.feature_cache()
        return FeastFeatureStore(self.redis, self._feast)

    def feature_cache(self) -> FeatureStore:
        """For those who write: in Redis, where they read what they wrote."""
        from stores.features.recorded import RecordedFeatureStore
        from stores.features.redis import RedisFeatureStore

        return (
            RedisFeatureStore(self.redis)
            if self._feast is None
            else RecordedFeatureStore(self.redis)
        )

    def feature_pusher(self) -> FeaturePusher | None:
        """What brings the cache's changes to the feature server; None where there is none."""
        from stores.features.feast_push import FeastPusher

        return None if self._feast is None else FeastPusher(self.redis, self._feast)

    def snapshots(self) -> SnapshotStore:
        from stores.snapshots.redis import RedisSnapshotStore

        return RedisSnapshotStore(self.redis)

    def events(self) -> EventLog:
        return self._event_log

    def vectors(self) -> VectorStore:
        return self._vector_store

    def embedder(self) -> Embedder:
        return self._onnx_embedder

    def media(self) -> MediaStore:
        self._expect("media_url", "file", "s3", "s3+http")
        if self._scheme("media_url") != "file":
            return self._s3
        from stores.media.folder import FolderMediaStore

        return FolderMediaStore(self._path("media_url"), self._settings.public_url)

    def feed_log(self) -> FeedLog:
        from stores.log.parquet import ParquetLog

        self._expect("log_url", "file")
        return ParquetLog(self._path("log_url"))

    def registry(self) -> "FolderRegistry":
        from stores.registry.folder import FolderRegistry

        self._expect("registry_url", "file")
        return FolderRegistry(self._path("registry_url"))

    def uploads(self) -> UploadStore | None:
        """None where media go through the gateway only."""
        return self._s3 if self._scheme("media_url").startswith("s3") else None

    @cached_property
    def redis(self) -> "Redis":
        """The client of FEED_REDIS_URL; the stores and the rate limits share it."""
        return self._open_redis(self._url("redis_url"))

    @cached_property
    def _database(self) -> "Database":
        from stores.sql.database import Database

        database = Database(self._url("sql_url"))
        return self._closing(database, database.close)

    @cached_property
    def _feast(self) -> "FeastClient | None":
        """The client of FEED_FEATURES_URL; None where features are in Redis alone."""
        self._expect("features_url", "redis", "feast+http", "feast+https")
        url = urlsplit(self._url("features_url"))
        if url.scheme == "redis":
            return None
        from stores.features.feast_client import READ_TIMEOUT_S, FeastClient

        options = dict(parse_qsl(url.query))
        client = FeastClient(
            url._replace(scheme=url.scheme.removeprefix("feast+"), query="").geturl(),
            float(options.get("timeout", READ_TIMEOUT_S)),
        )
        return self._closing(client, client.close)

    @cached_property
    def _event_log(self) -> EventLog:
        self._expect("events_url", "redis", "rediss", "redis+cluster", "rediss+cluster", "kafka")
        if self._scheme("events_url") == "kafka":
            from stores.events.kafka import KafkaEventLog
            from stores.events.kafka_client import KafkaAddress

            kafka = KafkaEventLog(KafkaAddress.parse(self._url("events_url")))
            return self._closing(kafka, kafka.close)
        from stores.events.redis import RedisEventLog

        # A client of its own: readers hold connections while they wait for records.
        log = RedisEventLog(self._open_redis(self._url("events_url")))
        return self._closing(log, log.close)

    @cached_property
    def _pinot(self) -> ImpressionStore:
        from stores.impressions.pinot import PinotAddress, PinotImpressionStore

        # Pinot reads topics of Kafka's, and nothing else that we have.
        self._expect("events_url", "kafka")
        address = PinotAddress.parse(self._url("impressions_url"))
        pinot = PinotImpressionStore(address, self.events())
        return self._closing(pinot, pinot.close)

    @cached_property
    def _dgraph(self) -> GraphStore:
        from stores.graph.dgraph import DgraphGraphStore

        store = DgraphGraphStore(self._url("graph_url"), self.outbox())
        return self._closing(store, store.close)

    @cached_property
    def _vector_store(self) -> VectorStore:
        self._expect("vectors_url", "edge", "edge+tcp", "qdrant", "qdrants")
        store: VectorStore
        if self._scheme("vectors_url").startswith("edge"):
            from stores.vectors.edge import EdgeVectorStore

            target = f"unix:{self._path('vectors_url')}"
            if self._scheme("vectors_url") == "edge+tcp":
                target = urlsplit(self._url("vectors_url")).netloc
            store = EdgeVectorStore(target)
        else:
            from stores.vectors.qdrant import Location, QdrantVectorStore

            store = QdrantVectorStore(Location.parse(self._url("vectors_url")))
        return self._closing(store, store.close)

    @cached_property
    def _s3(self) -> "S3MediaStore":
        from stores.media.s3 import Location, S3MediaStore

        self._expect("media_url", "s3", "s3+http")
        store = S3MediaStore(Location.parse(self._url("media_url"), os.environ))
        return self._closing(store, store.close)

    @cached_property
    def _onnx_embedder(self) -> Embedder:
        from stores.embedder.onnx import OnnxEmbedder

        self._expect("embedder_url", "onnx")
        return OnnxEmbedder(self._path("embedder_url"))

    def _open_redis(self, url: str) -> "Redis":
        from stores.redis_client import open_redis

        client = open_redis(url)
        return self._closing(client, client.aclose)

    def _closing(self, store: T, close: Callable[[], Awaitable[None]]) -> T:
        self._open.push_async_callback(close)
        return store

    def _url(self, setting: str) -> str:
        return self._settings.url(getattr(self._settings, setting))

    def _scheme(self, setting: str) -> str:
        return urlsplit(self._url(setting)).scheme

    def _path(self, setting: str) -> Path:
        return Path(self._url(setting).partition("://")[2])

    def _expect(self, setting: str, *schemes: str) -> None:
        scheme = self._scheme(setting)
        if scheme not in schemes:
            _unknown(setting, scheme, schemes)


def _unknown(setting: str, scheme: str, schemes: tuple[str, ...]) -> NoReturn:
    known = ", ".join(f"{name}://" for name in schemes)
    raise ValueError(f"FEED_{setting.upper()} begins with {scheme}://; known is {known}")
