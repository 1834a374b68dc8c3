"""Feeds whose order has chance in it, and readers who like posts with chances that are known."""

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

from hydrator_svc.rerank import Bounds, Exploration, Item, rerank
from ranker_svc.features import COLUMN, DENSE
from ranker_svc.scorers.contract import DENSE_INPUT, Contract
from stores.log.parquet import ParquetLog
from stores.log.port import Kind
from stores.log.schemas import SCHEMAS

EPSILON, POOL, POSTS, SEEN = 0.3, 10, 40, 20
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@dataclass
class Journal:
    """Rows of a log of feeds, until they are written."""

    rows: dict[Kind, list[dict[str, Any]]] = field(default_factory=lambda: {k: [] for k in Kind})

    def serve(
        self,
        feed_id: str,
        reader: int,
        order: Iterable[tuple[int, float, list[int]]],
        at: datetime = NOON,
        features: Mapping[str, Mapping[int, float]] | None = None,
    ) -> None:
        """A feed of (post, propensity, pool); features by name and post, none for nulls."""
        self.rows[Kind.SERVED] += [
            {
                "event_id": feed_id,
                "feed_id": feed_id,
                "user_id": reader,
                "served_at": at,
                "position": position,
                "post_id": post,
                "author_id": post % 7,
                "propensity": propensity,
                "pool": pool,
                **({} if features is None else dict.fromkeys(DENSE, 0.0)),
                **{name: of[post] for name, of in (features or {}).items()},
            }
            for position, (post, propensity, pool) in enumerate(order)
        ]

    def see(self, feed_id: str, reader: int, post: int, at: datetime = NOON) -> None:
        self.rows[Kind.IMPRESSIONS].append(
            {
                "event_id": f"{feed_id}-{post}-{at}",
                "user_id": reader,
                "post_id": post,
                "seen_at": at,
                "feed_id": feed_id,
            }
        )

    def act(self, action: str, reader: int, post: int, at: datetime) -> None:
        self.rows[Kind.ENGAGEMENTS].append(
            {
                "event_id": f"{action}-{reader}-{post}-{at}",
                "user_id": reader,
                "post_id": post,
                "action": action,
                "at": at,
            }
        )

    def write(self, root: Path) -> ParquetLog:
        log = ParquetLog(root)
        for kind, rows in self.rows.items():
            asyncio.run(log.append(kind, pa.Table.from_pylist(rows, SCHEMAS[kind])))
        return log


@dataclass
class World:
    """Feeds over three days, ordered by random scores.

    The greater a post's `topic_similarity`, the more readers like it; `age_hours` tells the order
    of the log's scores.
    """

    feeds: int
    seed: int = 1
    journal: Journal = field(default_factory=Journal)
    # The chances of a like, by post.
    chances: dict[int, float] = field(default_factory=dict)
    # Of each place that was seen: the posts that it was drawn from, best first.
    pools: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        for number in range(self.feeds):
            self._feed(number, chance)

    def _feed(self, number: int, chance: random.Random) -> None:
        feed_id, reader = f"feed-{number}", 1 + number % 50
        at = NOON + timedelta(days=number % 3, seconds=number)
        posts = [1_000_000 + number * POSTS + n for n in range(POSTS)]
        items = [Item(n, n % 13, n % 3 == 0, chance.random()) for n in range(POSTS)]
        similarity = {post: chance.random() for post in posts}
        self.chances |= {post: 0.05 + 0.5 * of for post, of in similarity.items()}
        placed = rerank(items, Bounds(20, 0.2, 0.6), Exploration(EPSILON, POOL, chance))
        order = [(posts[p.index], p.propensity, [posts[index] for index in p.pool]) for p in placed]
        features = {
            "topic_similarity": similarity,
            "age_hours": {posts[item.index]: 1 - item.score for item in items},
        }
        self.journal.serve(feed_id, reader, order, at, features)
        for post, _, pool in order[:SEEN]:
            self.pools.append(pool)
            self.journal.see(feed_id, reader, post, at)
            if chance.random() < self.chances[post]:
                self.journal.act("like", reader, post, at + timedelta(minutes=1))

    def value_by_likes(self) -> float:
        """Likes per seen place if the best of each pool were the one that is liked most."""
        return float(
            np.mean(
                [
                    EPSILON * np.mean([self.chances[post] for post in pool])
                    + (1 - EPSILON) * max(self.chances[post] for post in pool)
                    for pool in self.pools
                ]
            )
        )


def model_of(column: str, sign: float, file: Path) -> Path:
    """Writes an ONNX model whose score is this feature, or less it; returns the file."""
    weights = np.zeros((len(DENSE), 1), np.float32)
    weights[COLUMN[column]] = sign
    graph = helper.make_graph(
        [helper.make_node("MatMul", [DENSE_INPUT, "weights"], ["scores"])],
        "column",
        [helper.make_tensor_value_info(DENSE_INPUT, TensorProto.FLOAT, ["n", len(DENSE)])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    helper.set_model_props(model, Contract("column", DENSE).metadata())
    onnx.save_model(model, file)
    return file
