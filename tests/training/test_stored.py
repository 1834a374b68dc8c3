"""Joins by the real Feast; its environment is installed where it is not there yet."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import FailedPrecondition
from mesh.settings import Settings
from ranker_svc.features import CATEGORICAL, COLUMN, topic_id
from stores.features.feast_push import vector_json
from stores.log.parquet import ParquetLog
from stores.log.port import Kind
from tests.training.logs import (
    AUTHOR,
    NOON,
    POST,
    READER,
    after,
    engagement,
    impression,
    served,
    table,
    unit_vector,
)
from tests.training.offline import add
from training.dataset import build
from training.skew import Asked, report
from training.stored import Stored, stored

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
CACHE = Settings().stack_cache.expanduser()


def post(at: datetime, **changes: Any) -> Mapping[str, Any]:
    return {
        "post_id": POST, "like_count": 3, "has_media": True, "author_id": AUTHOR,
        "embedding_json": vector_json(unit_vector(1)), "topic": "chess", "event_timestamp": at,
        **changes,
    }  # fmt: skip


def user(at: datetime, **changes: Any) -> Mapping[str, Any]:
    return {
        "user_id": READER, "follower_count": 9, "avg_engagement_rate": 0.5,
        "interest_vector_json": vector_json(unit_vector(2)), "event_timestamp": at, **changes,
    }  # fmt: skip


def pair(at: datetime, **changes: Any) -> Mapping[str, Any]:
    return {
        "user_id": READER, "author_id": AUTHOR, "affinity_score": 0.75, "event_timestamp": at,
        **changes,
    }  # fmt: skip


def known(data: Path) -> None:
    """Values from an hour before, and others from just after the feed."""
    for at, changes in ((after(hours=-1), 0), (after(milliseconds=1), 1)):
        add(data, "post_stats", post(at, like_count=3 + changes))
        add(data, "user_stats", user(at, follower_count=9 + changes))
        add(data, "user_author_affinity", pair(at, affinity_score=0.75 + changes / 8))


async def joined(data: Path, *rows: Mapping[str, Any]) -> Stored:
    return await stored(table(Kind.SERVED, *rows), data, CACHE)


def values(found: Stored, name: str) -> list[Any]:
    return list(found.columns[name].tolist())


async def test_values_are_those_of_the_time_when_the_feed_was_served(tmp_path: Path) -> None:
    known(tmp_path)

    found = await joined(
        tmp_path,
        served(served_at=after(hours=-2)),
        served(),
        served(feed_id="then", served_at=after(milliseconds=1)),
    )

    assert values(found, "like_count") == [0, 3, 4]
    assert values(found, "reader_follower_count") == [0, 9, 10]
    assert values(found, "affinity") == [0, 0.75, 0.875]
    assert values(found, "has_media") == [0, 1, 1]
    assert values(found, "topic") == [0, topic_id("chess"), topic_id("chess")]
    cosine = float(unit_vector(1) @ unit_vector(2))
    assert values(found, "topic_similarity") == pytest.approx([0, cosine, cosine], abs=1e-6)
    noon = round(NOON.timestamp() * 1_000)
    assert found.written_ms.tolist() == [-1, noon - 3_600_000, noon + 1]


async def test_ids_stay_exact_beside_ones_that_are_missing(tmp_path: Path) -> None:
    known(tmp_path)
    # Floats would take them for the same.
    assert float(POST) == float(POST - 1)

    found = await joined(
        tmp_path,
        served(post_id=POST - 1, author_id=AUTHOR - 1, user_id=READER - 1, feed_id="other"),
        served(),
        served(post_id=POST + 1),
    )

    assert values(found, "like_count") == [0, 3, 0]
    assert values(found, "affinity") == [0, 0.75, 0.75]
    assert values(found, "reader_follower_count") == [0, 9, 9]
    assert found.topic_known.tolist() == [False, True, False]


async def test_values_older_than_their_views_ttl_are_gone(tmp_path: Path) -> None:
    for view, row in (("post_stats", post), ("user_stats", user), ("user_author_affinity", pair)):
        add(tmp_path, view, row(after(days=-36)))

    found = await joined(tmp_path, served())

    assert values(found, "like_count") == [0]
    assert values(found, "reader_follower_count") == [9]


async def test_files_from_before_topics_were_kept_are_read(tmp_path: Path) -> None:
    known(tmp_path)
    add(tmp_path, "post_stats", post(after(minutes=-1), like_count=8), without="topic")

    found = await joined(tmp_path, served())

    assert values(found, "like_count") == [8]
    assert found.topic_known.tolist() == [False]


async def log_of(folder: Path, *rows: Mapping[str, Any], likes: int = 0) -> Path:
    """All of the posts were shown, and the first were liked."""
    log = ParquetLog(folder)
    shown = [impression(post_id=row["post_id"], feed_id=row["feed_id"]) for row in rows]
    liked = [engagement("like", after(hours=1), post_id=row["post_id"]) for row in rows[:likes]]
    for kind, some in ((Kind.SERVED, rows), (Kind.IMPRESSIONS, shown), (Kind.ENGAGEMENTS, liked)):
        # An event of a feed has one row for each place.
        await log.append(kind, table(kind, *some))
    return folder


async def test_examples_have_what_was_stored_and_what_was_logged(tmp_path: Path) -> None:
    known(tmp_path)
    log = await log_of(tmp_path / "log", served(), likes=1)

    made = await build(log, tmp_path, CACHE)

    assert made.like.tolist() == [1]
    assert made.post.tolist() == [POST]
    topic = topic_id("chess")
    assert dict(zip(CATEGORICAL, made.features.ids[0].tolist(), strict=True)) == {
        "reader": READER, "author": AUTHOR, "topic": topic, "source": 1, "hour": 12,
    }  # fmt: skip
    row = made.features.dense[0]
    assert row[COLUMN["like_count"]] == 3
    assert [row[COLUMN[name]] for name in ("age_hours", "viewer_count", "engagement_rate")] == [
        3.5, 7, 0.0625,
    ]  # fmt: skip


def many() -> list[Mapping[str, Any]]:
    return [served(position=n, post_id=POST + n) for n in range(200)]


async def test_a_value_of_the_future_is_not_joined(tmp_path: Path) -> None:
    log = await log_of(tmp_path / "log", *many(), likes=80)
    known(tmp_path)
    likes = [post(after(minutes=30), post_id=POST + n, like_count=900) for n in range(80)]
    add(tmp_path, "post_stats", *likes)

    made = await build(log, tmp_path, CACHE)

    assert made.features.dense[:, COLUMN["like_count"]].max() == 3


async def test_a_value_of_the_future_that_was_backdated_is_caught(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = await log_of(tmp_path / "log", *many(), likes=80)
    # They were liked after the feed, and the row says it was before.
    changes = {"like_count": 1, "has_media": False, "topic": "", "embedding_json": None}
    likes = [post(after(minutes=-1), post_id=POST + n, **changes) for n in range(80)]
    add(tmp_path, "post_stats", *likes)

    with pytest.raises(FailedPrecondition, match="like_count alone tells likes"):
        await build(log, tmp_path, CACHE)

    assert await report(Asked(log, tmp_path), CACHE) == 80
    assert "like_count logged 0.0 offline 1.0" in capsys.readouterr().out


async def test_what_was_on_its_way_is_no_skew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"has_media": False, "topic": "", "embedding_json": None}
    log = await log_of(
        tmp_path / "log",
        served(like_count=4.0),
        served(position=1, post_id=POST + 1, like_count=4.0),
    )
    add(tmp_path, "post_stats", post(after(seconds=-50), like_count=3, **changes))
    # The cache had it when the feed was served, and Feast soon after.
    add(tmp_path, "post_stats", post(after(seconds=3), like_count=4, **changes))
    # Not so soon.
    late = post(after(seconds=30), post_id=POST + 1, like_count=4, **changes)
    add(tmp_path, "post_stats", late)

    assert await report(Asked(log, tmp_path), CACHE) == 1
    assert "1 mismatches of 2; 1 in flight" in capsys.readouterr().out
    assert await report(Asked(log, tmp_path, in_flight_s=60), CACHE) == 0
    assert await report(Asked(log, tmp_path, in_flight_s=1), CACHE) == 2
