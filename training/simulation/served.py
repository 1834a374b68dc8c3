"""The log of feeds, as the worker `log` would have written it."""

import asyncio
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ranker_svc.features import CATEGORICAL, DENSE
from stores.log.parquet import ParquetLog
from stores.log.port import Kind
from stores.log.schemas import SCHEMAS
from training.simulation.feeds import Feed
from training.simulation.state import Showing
from training.simulation.world import World

_Columns = dict[str, NDArray[np.generic] | pa.Array]


class Served:
    """Gathers rows, and appends them by the many.

    Args:
        root: Of the log.
        world: Whose feeds they are.
    """

    def __init__(self, root: Path, world: World) -> None:
        self._log = ParquetLog(root)
        self._world = world
        self._waiting: dict[Kind, list[pa.Table]] = {kind: [] for kind in Kind}

    def add(self, feed: Feed, version: str, served_ms: int, showing: Showing) -> None:
        """A feed, and what its reader did with it."""
        user_id = int(self._world.user_ids[showing.reader])
        self._served(feed, version, served_ms, user_id, showing.feed_id)
        self._showings(user_id, showing)

    def flush(self) -> None:
        """Appends what waits; returns when it is durable."""
        for kind, tables in self._waiting.items():
            if tables:
                asyncio.run(self._log.append(kind, pa.concat_tables(tables)))
                tables.clear()

    def _served(self, feed: Feed, version: str, served_ms: int, user_id: int, feed_id: str) -> None:
        placed = feed.placed
        if not placed:
            return
        order = np.array([each.index for each in placed])
        posts, ids = feed.posts[order], feed.features.ids[order]
        post_ids = self._world.posts.ids[feed.posts]
        members = np.fromiter(chain.from_iterable(each.pool for each in placed), np.int64)
        ends = np.cumsum([0, *(len(each.pool) for each in placed)]).astype(np.int32)
        columns: _Columns = {
            "event_id": np.repeat(np.array([f"served-{feed_id}"]), len(order)),
            "feed_id": np.repeat(np.array([feed_id]), len(order)),
            "user_id": np.full(len(order), user_id),
            "served_at": np.full(len(order), served_ms),
            "model_version": np.repeat(np.array([version]), len(order)),
            "position": np.arange(len(order)),
            "post_id": self._world.posts.ids[posts],
            "author_id": self._world.user_ids[self._world.posts.author[posts]],
            "score": feed.scores[order],
            "propensity": np.array([each.propensity for each in placed]),
            "pool": pa.ListArray.from_arrays(pa.array(ends), pa.array(post_ids[members])),
            **{name: feed.features.dense[order, at] for at, name in enumerate(DENSE)},
            **{name: ids[:, CATEGORICAL.index(name)] for name in ("topic", "source", "hour")},
        }
        self._add(Kind.SERVED, columns)

    def _showings(self, user_id: int, showing: Showing) -> None:
        posts = np.array(showing.posts, np.int64)
        count = len(posts)
        author_ids = self._world.user_ids[self._world.posts.author[posts]]
        self._add(
            Kind.IMPRESSIONS,
            {
                "event_id": np.array([f"{showing.feed_id}-{n}" for n in range(count)]),
                "user_id": np.full(count, user_id),
                "post_id": self._world.posts.ids[posts],
                "author_id": author_ids,
                "seen_at": np.array(showing.seen_ms, np.int64),
                "position": np.arange(count),
                "feed_id": np.repeat(np.array([showing.feed_id]), count),
                "dwell_ms": pa.array(showing.dwell_ms, pa.int32()),
            },
        )
        liked = [n for n, at in enumerate(showing.liked_ms) if at is not None]
        self._add(
            Kind.ENGAGEMENTS,
            {
                "event_id": np.array([f"like-{showing.feed_id}-{n}" for n in liked], str),
                "user_id": np.full(len(liked), user_id),
                "post_id": self._world.posts.ids[posts[liked]],
                "author_id": author_ids[liked],
                "action": np.repeat(np.array(["like"]), len(liked)),
                "at": np.array([showing.liked_ms[n] for n in liked], np.int64),
            },
        )

    def _add(self, kind: Kind, columns: _Columns) -> None:
        schema = SCHEMAS[kind]
        if len(columns[schema.names[0]]):
            arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
            self._waiting[kind].append(pa.Table.from_arrays(arrays, schema=schema))
