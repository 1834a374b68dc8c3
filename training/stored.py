"""What Feast had of posts, readers and pairs of them when a feed was served."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mesh.packing import Vector
from ranker_svc.features import similarities, topic_id
from stack.feast import historical
from stores.features.port import PostFeatures
from training.labels import Ints

Floats = NDArray[np.float64]

# The columns that come from each view; topic_similarity needs both vectors.
_KEYS: Mapping[str, Sequence[str]] = {
    "user_stats": ("user_id", "served_at"),
    "post_stats": ("post_id", "served_at"),
    "user_author_affinity": ("user_id", "author_id", "served_at"),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """Of n rows, in their order.

    Args:
        columns: By the feature's name as the ranker calls it: float32 (n,), and `topic`, int64
            (n,); 0 where nothing was stored.
        topic_known: False where the row is from before topics were kept; (n,).
        written_ms: The newest time of a value that is in the row, int64 (n,); -1 where nothing was
            stored, or where the offline store does not tell.
    """

    columns: Mapping[str, NDArray[np.float32] | Ints]
    topic_known: NDArray[np.bool_]
    written_ms: Ints


async def stored(rows: pa.Table, feast: Path, cache: Path) -> Stored:
    """By Feast's point-in-time joins.

    Args:
        rows: With `user_id`, `post_id`, `author_id`, `feed_id` and `served_at`, one or more.
        feast: FEED_FEAST_DATA of the Feast that has the values.
        cache: Where Feast's environment is, or will be.

    Raises:
        FeedError: Feast does not install, or does not give them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Feeds have many posts of one time, and their readers' values are all the same.
        places = {view: _ask(rows, view, keys, folder) for view, keys in _KEYS.items()}
        await historical(cache, feast, folder)
        return combined(
            rows,
            {
                view: (pq.read_table(folder / f"{view}-values.parquet"), place)
                for view, place in places.items()
            },
        )


def combined(rows: pa.Table, found: Mapping[str, tuple[pa.Table, Ints]]) -> Stored:
    """Pure.

    Args:
        rows: As `stored` takes.
        found: By view, what Feast gave, and for each of the rows which of that is its.
    """
    users, of_user = found["user_stats"]
    posts, of_post = found["post_stats"]
    pairs, of_pair = found["user_author_affinity"]
    topics = posts["post_stats__topic"]
    columns: dict[str, NDArray[np.float32] | Ints] = {
        "affinity": _numbers(pairs["user_author_affinity__affinity_score"])[of_pair],
        "topic_similarity": _similarities(rows, found),
        "like_count": _numbers(posts["post_stats__like_count"])[of_post],
        "has_media": _numbers(posts["post_stats__has_media"])[of_post],
        "reader_follower_count": _numbers(users["user_stats__follower_count"])[of_user],
        "reader_avg_engagement_rate": _numbers(users["user_stats__avg_engagement_rate"])[of_user],
        "topic": np.array([topic_id(each or "") for each in topics.to_pylist()], np.int64)[of_post],
    }
    written = [_written(table, view)[place] for view, (table, place) in found.items()]
    known = pc.is_valid(topics).to_numpy()[of_post]
    return Stored(columns, known, np.max(written, axis=0))


def _ask(rows: pa.Table, view: str, keys: Sequence[str], folder: Path) -> Ints:
    """Writes the view's entities, each once; returns which of them each row has."""
    asked = rows.select(list(keys)).combine_chunks()
    numbers = asked.append_column("row", pa.array(np.arange(len(asked))))
    grouped = numbers.group_by(list(keys)).aggregate([("row", "min"), ("row", "list")])
    lists = grouped["row_list"].combine_chunks()
    place = np.empty(len(asked), np.int64)
    place[lists.flatten().to_numpy()] = lists.value_parent_indices().to_numpy()
    entities = grouped.select(list(keys)).rename_columns([*keys[:-1], "event_timestamp"])
    pq.write_table(entities, folder / f"{view}.parquet")
    return place


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float32]:
    return np.asarray(pc.fill_null(column.cast(pa.float32()), 0).to_numpy())


def _written(table: pa.Table, view: str) -> Ints:
    name = f"{view}__event_timestamp"
    if name not in table.schema.names:
        return np.full(len(table), -1)
    # Up to the next millisecond, so that what was written later in the same one is seen.
    times = table[name].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return np.asarray(-(-pc.fill_null(times, -1_000).to_numpy() // 1_000))


def _similarities(
    rows: pa.Table, found: Mapping[str, tuple[pa.Table, Ints]]
) -> NDArray[np.float32]:
    """Of each feed's reader and posts."""
    users, of_user = found["user_stats"]
    posts, of_post = found["post_stats"]
    interests, interest_of = _vectors(users["user_stats__interest_vector_json"])
    embeddings, embedding_of = _vectors(posts["post_stats__embedding_json"])
    known = [PostFeatures(0, 0, False, 0, each) for each in embeddings]
    interest, embedding = interest_of[of_user], embedding_of[of_post]
    cosines = np.zeros(len(rows), np.float32)
    order = np.argsort(interest, kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(interest[order])) + 1):
        whose = interest[some[0]] if len(some) else -1
        if whose >= 0:
            theirs = [known[n] if n >= 0 else None for n in embedding[some]]
            cosines[some] = similarities(interests[whose], theirs)
    return cosines


def _vectors(column: pa.ChunkedArray) -> tuple[list[Vector], Ints]:
    """The different vectors, and which of them each row has; -1 for none."""
    coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    whole = coded.unify_dictionaries().combine_chunks()
    vectors = [np.array(json.loads(text), np.float32) for text in whole.dictionary.to_pylist()]
    return vectors, np.asarray(pc.fill_null(whole.indices, -1).to_numpy().astype(np.int64))
