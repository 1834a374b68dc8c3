"""Which workers there are, and running them."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any

from mesh import telemetry
from mesh.settings import Settings
from stores.connect import Connections
from workers.consumer import Consumer, Worker
from workers.embedding import Embedding
from workers.fanout import Fanout
from workers.feature_push import FeaturePush
from workers.features import Features
from workers.housekeeping import forget_forever
from workers.impressions import Impressions
from workers.log import Log
from workers.media import MediaCleaner
from workers.relay import KEYS_KEPT, Relay

_Job = Coroutine[Any, Any, None]


async def run_workers(settings: Settings, stores: Connections, names: Sequence[str] = ()) -> None:
    """Runs the named workers, or all, until cancelled.

    Any number of processes may run the same workers: groups share their records, and one relay
    works at a time.

    Args:
        settings: FEED_PUSH_LIMIT, FEED_INTEREST_HALF_LIFE_DAYS, FEED_EXPLORATION_VIEWERS,
            FEED_LOG_GATHER_S, FEED_LOG_DAYS and the stores' URLs are read.
        stores: Where the workers read and write.
        names: Of `NAMES`; empty for all.

    Raises:
        ValueError: A name is not known.
    """
    unknown = set(names) - set(NAMES)
    if unknown:
        raise ValueError(f"no such worker: {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    with telemetry.as_service("workers"):
        async with asyncio.TaskGroup() as tasks:
            for name in names or NAMES:
                for job in _JOBS[name](settings, stores):
                    tasks.create_task(job, name=name)


def _relay(settings: Settings, stores: Connections) -> list[_Job]:
    relay = Relay(stores.outbox(), stores.events(), stores.leases())
    forget_keys = stores.posts().forget_idempotency_keys
    return [relay.run(), forget_forever("idempotency keys", KEYS_KEPT, forget_keys)]


def _fanout(settings: Settings, stores: Connections) -> list[_Job]:
    worker = Fanout(stores.posts(), stores.graph(), stores.mailboxes(), settings.push_limit)
    return [_consume(worker, stores)]


def _embedding(settings: Settings, stores: Connections) -> list[_Job]:
    worker = Embedding(stores.posts(), stores.embedder(), stores.vectors(), stores.feature_cache())
    return [_consume(worker, stores)]


def _features(settings: Settings, stores: Connections) -> list[_Job]:
    worker = Features(
        stores.posts(),
        stores.graph(),
        stores.impressions(),
        stores.feature_cache(),
        stores.vectors(),
        half_life=timedelta(days=settings.interest_half_life_days),
        proven_viewers=settings.exploration_viewers,
    )
    return [_consume(worker, stores)]


def _feature_push(settings: Settings, stores: Connections) -> list[_Job]:
    pusher = stores.feature_pusher()
    # Features are served from where they are written; a process that has only this to do waits.
    return [_wait() if pusher is None else FeaturePush(pusher, stores.leases()).run()]


async def _wait() -> None:
    await asyncio.Event().wait()


def _impressions(settings: Settings, stores: Connections) -> list[_Job]:
    impressions = stores.impressions()
    if impressions.reads_the_log:
        return [_wait()]
    worker = Impressions(impressions)
    return [_consume(worker, stores), worker.purge_forever()]


def _media(settings: Settings, stores: Connections) -> list[_Job]:
    cleaner = MediaCleaner(stores.media(), stores.uploads(), stores.posts(), stores.leases())
    return [cleaner.run()]


def _log(settings: Settings, stores: Connections) -> list[_Job]:
    worker = Log(stores.feed_log(), stores.leases(), settings.log_days)
    return [_consume(worker, stores, settings.log_gather_s), worker.tidy_forever()]


def _consume(worker: Worker, stores: Connections, gather_s: float = 0.0) -> _Job:
    return Consumer(worker, stores.events(), gather_s).run()


_JOBS: dict[str, Callable[[Settings, Connections], list[_Job]]] = {
    "relay": _relay,
    "fanout": _fanout,
    "embedding": _embedding,
    "features": _features,
    "feature_push": _feature_push,
    "impressions": _impressions,
    "media": _media,
    "log": _log,
}
NAMES = tuple(_JOBS)
