"""What was shown, and what of it was liked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.log.port import Kind
from tests.training.logs import NOON, POST, READER, after, engagement, impression, served, table
from training.labels import Moments, latest, likes, showings


def shown(*impressions: Mapping[str, Any]) -> pa.Table:
    rows = [
        served(),
        served(position=1, post_id=POST + 1),
        served(feed_id="later", served_at=after(hours=5)),
    ]
    return showings(table(Kind.SERVED, *rows), table(Kind.IMPRESSIONS, *impressions))


def test_posts_that_nobody_saw_are_no_examples() -> None:
    found = shown(impression())

    assert found["post_id"].to_pylist() == [POST]
    assert found["user_id"].to_pylist() == [READER]
    assert found["seen_at"].to_pylist() == [after(seconds=1)]


def test_of_a_post_seen_twice_in_a_feed_the_first_counts() -> None:
    found = shown(
        impression(seen_at=after(seconds=9), dwell_ms=9_000),
        impression(seen_at=after(seconds=2), dwell_ms=None),
    )

    assert found["seen_at"].to_pylist() == [after(seconds=2)]
    assert found["dwell_ms"].to_pylist() == [None]


def test_a_post_shown_in_two_feeds_is_two_examples_in_the_order_of_time() -> None:
    found = shown(impression(feed_id="later", seen_at=after(hours=5, seconds=1)), impression())

    assert found["feed_id"].to_pylist() == ["feed", "later"]


@pytest.mark.parametrize(
    "changes",
    [{"feed_id": ""}, {"feed_id": "unknown"}, {"user_id": READER + 1}, {"post_id": POST + 2}],
)
def test_impressions_that_were_not_served_so_are_no_examples(changes: dict[str, object]) -> None:
    assert len(shown(impression(**changes))) == 0


def test_a_place_that_was_logged_twice_is_one_example() -> None:
    rows = table(Kind.SERVED, served(), served())

    assert len(showings(rows, table(Kind.IMPRESSIONS, impression()))) == 1


def liked(*acts: Mapping[str, Any]) -> list[float]:
    found = shown(impression(), impression(feed_id="later", seen_at=after(hours=5)))
    return [float(each) for each in likes(found, table(Kind.ENGAGEMENTS, *acts))]


def test_a_like_is_of_the_last_showing_before_it() -> None:
    assert liked() == [0, 0]
    assert liked(engagement("like", after(hours=1))) == [1, 0]
    assert liked(engagement("like", after(hours=6))) == [0, 1]
    assert liked(engagement("like", after(hours=5))) == [0, 1]


def test_likes_before_the_showing_and_after_a_day_do_not_count() -> None:
    assert liked(engagement("like", NOON)) == [0, 0]
    assert liked(engagement("like", after(hours=29))) == [0, 1]
    assert liked(engagement("like", after(hours=29, seconds=1))) == [0, 0]


def test_likes_of_others_and_of_other_posts_do_not_count() -> None:
    at = after(hours=1)

    assert liked(engagement("like", at, user_id=READER + 1)) == [0, 0]
    assert liked(engagement("like", at, post_id=POST + 1)) == [0, 0]


def test_a_like_that_is_taken_back_does_not_count_unless_it_is_given_again() -> None:
    like, unlike = engagement("like", after(hours=1)), engagement("unlike", after(hours=2))

    assert liked(like, unlike) == [0, 0]
    assert liked(unlike, like) == [0, 0]
    assert liked(like, unlike, engagement("like", after(hours=3))) == [1, 0]
    # Later than a day after the showing.
    assert liked(like, engagement("unlike", after(hours=25))) == [1, 0]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9))), st.integers(0, 20))
def test_the_latest_is_what_a_search_one_by_one_finds(
    moments: list[tuple[int, int]], past: int
) -> None:
    keys = np.array([[key, READER] for key, _ in moments], np.int64).reshape(-1, 2)
    times = np.array([time for _, time in moments], np.int64)
    before = Moments(keys[:past], times[:past])
    asked = Moments(keys[past:], times[past:])

    found = latest(before, asked)

    for (key, time), number in zip(moments[past:], found, strict=True):
        fitting = [(t, n) for n, (k, t) in enumerate(moments[:past]) if k == key and t <= time]
        assert number == (max(fitting)[1] if fitting else -1)
