"""`feedmesh prepare`: makes in each backend what the mesh expects to find there."""

import asyncio
import os
from collections.abc import AsyncIterator

import httpx
from minio.error import MinioException

from mesh.errors import FailedPrecondition, Unavailable
from mesh.settings import Settings
from stores.connect import Connections
from stores.events.kafka import KafkaEventLog
from stores.events.kafka_client import KafkaAddress
from stores.events.port import Topic
from stores.impressions.pinot import PinotAddress
from stores.impressions.pinot_admin import make_table
from stores.impressions.pinot_table import PinotVersion
from stores.media.bucket import make_bucket
from stores.media.s3 import Location
from stores.sql.migrate import migrate


async def prepare(
    settings: Settings,
    pinot_controller: str | None,
    pinot_version: PinotVersion,
    pinot_replicas: int,
) -> AsyncIterator[str]:
    """Prepares the backends that FEED_*_URL name, one after another; what is ready, in words.

    Everything that is there already stays as it is, so it may be run again, also while the mesh
    runs, and by several at once.

    Args:
        settings: FEED_*_URL.
        pinot_controller: URL of Pinot's controller, which FEED_IMPRESSIONS_URL does not name.
        pinot_version: Whose dialect the table is in.
        pinot_replicas: How many of Pinot's servers have each row.

    Raises:
        FeedError: A backend is away, or refuses.
    """
    await migrate(settings.url(settings.sql_url))
    yield "database: the newest schema"
    if settings.events_url.startswith("kafka://"):
        yield await _topics(settings.events_url)
    if settings.impressions_url.startswith("pinot://"):
        if pinot_controller is None:
            raise FailedPrecondition("the URL of Pinot's controller is missing")
        yield await _table(settings, pinot_controller, pinot_version, pinot_replicas)
    if settings.media_url.startswith("s3"):
        yield await _bucket(settings.media_url)
    async with Connections(settings) as stores:
        # Both make what they need before they answer.
        if settings.vectors_url.startswith("qdrant"):
            yield f"vectors: a collection of {await stores.vectors().count():,} points"
        if settings.graph_url.startswith("dgraph://"):
            await stores.graph().following_count(0)
            yield "graph: the schema"


async def _topics(url: str) -> str:
    log = KafkaEventLog(KafkaAddress.parse(url))
    try:
        await log.make_topics(list(Topic))
    finally:
        await log.close()
    return f"event log: {len(Topic)} topics"


async def _table(settings: Settings, controller: str, version: PinotVersion, replicas: int) -> str:
    broker = PinotAddress.parse(settings.impressions_url)
    kafka = KafkaAddress.parse(settings.events_url)
    try:
        await make_table(
            version,
            controller,
            f"http://{broker.host}:{broker.port}",
            kafka.servers,
            kafka.named(Topic.IMPRESSIONS),
            broker.table,
            replicas,
        )
    except (httpx.HTTPError, TimeoutError) as error:
        raise Unavailable(f"Pinot does not make its table: {error!r}") from error
    return f"impressions: the table {broker.table}"


async def _bucket(url: str) -> str:
    at = Location.parse(url, os.environ)
    try:
        await asyncio.to_thread(make_bucket, at)
    except (MinioException, OSError) as error:
        raise Unavailable(f"the bucket {at.bucket} cannot be made: {error}") from error
    return f"media: the bucket {at.bucket}"
