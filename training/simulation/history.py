"""Every change of stored features, as Feast's offline folders keep them.

`<root>/offline/<view>/*.parquet`, with the columns of features/views.py: a row has all that is
stored of an entity from its time on. Times are in microseconds, and no two changes have the same.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stores.features.feast_push import vector_json
from training.simulation.state import Changes, State
from training.simulation.world import World

_TIME = ("event_timestamp", pa.timestamp("us", tz="UTC"))
SCHEMAS = {
    "user_stats": pa.schema(
        [
            ("user_id", pa.int64()),
            ("follower_count", pa.int64()),
            ("avg_engagement_rate", pa.float64()),
            ("interest_vector_json", pa.string()),
            _TIME,
        ]
    ),
    "post_stats": pa.schema(
        [
            ("post_id", pa.int64()),
            ("like_count", pa.int64()),
            ("has_media", pa.bool_()),
            ("author_id", pa.int64()),
            ("embedding_json", pa.string()),
            ("topic", pa.string()),
            _TIME,
        ]
    ),
    "user_author_affinity": pa.schema(
        [
            ("user_id", pa.int64()),
            ("author_id", pa.int64()),
            ("affinity_score", pa.float64()),
            _TIME,
        ]
    ),
}
# A vector is some 4.5 kB of text and mostly as it was: in a dictionary, it is there once.
_DICTIONARY_BYTES = 1 << 28


class History:
    """Writes the changes.

    Args:
        root: FEED_FEAST_DATA of whoever reads them.
        world: Whose users and posts they are of.
    """

    def __init__(self, root: Path, world: World) -> None:
        self._root = root
        self._world = world
        self._columns: dict[str, list[list[object]]] = {}
        self._files = 0
        self._pushed: dict[int, set[int]] = defaultdict(set)
        # The text of each vector, by the vector's identity and while that is held.
        self._texts: dict[int, tuple[object, str]] = {}
        self._clear()

    def record(self, state: State, changes: Changes, at_us: int) -> None:
        """What changed, as it is from `at_us` on."""
        for user in sorted(changes.users):
            known = state.users[user]
            self._add(
                "user_stats",
                int(self._world.user_ids[user]),
                known.follower_count,
                known.avg_engagement_rate,
                self._text(known.interest_vector),
                at_us,
            )
        for number in sorted(changes.posts):
            post = state.posts[number]
            assert post is not None  # noqa: S101  it changed, so it is there
            self._add(
                "post_stats",
                int(self._world.posts.ids[number]),
                post.like_count,
                post.has_media,
                post.author_id,
                self._text(post.embedding),
                post.topic,
                at_us,
            )
        for user in sorted(changes.affinities):
            self._record_affinities(state, user, at_us)

    def flush(self) -> None:
        """Writes a file a view of what was recorded since the last time."""
        for view, columns in self._columns.items():
            arrays = [
                pa.array(column, field.type)
                for column, field in zip(columns, SCHEMAS[view], strict=True)
            ]
            table = pa.Table.from_arrays(arrays, schema=SCHEMAS[view])
            folder = self._root / "offline" / view
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(
                table,
                folder / f"{self._files:04}.parquet",
                compression="zstd",
                dictionary_pagesize_limit=_DICTIONARY_BYTES,
            )
        self._files += 1
        self._clear()

    def _record_affinities(self, state: State, user: int, at_us: int) -> None:
        """All of the user's, also those that are no more: Feast forgets none by itself."""
        scores = state.affinities[user]
        user_id = int(self._world.user_ids[user])
        for author_id in sorted(self._pushed[user] | set(scores)):
            score = scores.get(author_id, 0.0)
            self._add("user_author_affinity", user_id, author_id, score, at_us)
        self._pushed[user] = set(scores)

    def _add(self, view: str, *values: object) -> None:
        for column, value in zip(self._columns[view], values, strict=True):
            column.append(value)

    def _text(self, vector: np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None) -> str | None:
        if vector is None:
            return None
        if id(vector) not in self._texts:
            self._texts[id(vector)] = (vector, vector_json(vector) or "")
        return self._texts[id(vector)][1]

    def _clear(self) -> None:
        self._columns = {view: [[] for _ in schema] for view, schema in SCHEMAS.items()}
        self._texts = {}
