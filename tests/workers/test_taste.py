"""What a reader is taken to like."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.packing import DIMENSIONS, Vector
from stores.impressions.port import Impression
from stores.posts.port import Engagement
from workers.popularity import engagement_rate, hotness
from workers.taste import taste

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


def axis(number: int) -> Vector:
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[number] = 1
    return vector


EMBEDDINGS = {post_id: axis(post_id) for post_id in range(20)}


def like(post_id: int, author_id: int = 1, days_ago: float = 0) -> Engagement:
    return Engagement(post_id, author_id, NOW - timedelta(days=days_ago))


def dwell(post_id: int, author_id: int = 1, days_ago: float = 0, event: str = "e") -> Impression:
    seen_at = NOW - timedelta(days=days_ago)
    return Impression(
        f"{event}{post_id}", 5, post_id, author_id, int(seen_at.timestamp() * 1000), dwell_ms=9_000
    )


posts = st.integers(0, 19)
# A post has one author, whatever is done with it.
likes = st.lists(
    st.builds(lambda post, days: like(post, 1 + post % 4, days), posts, st.floats(-1, 3650)),
    max_size=30,
)
dwells = st.lists(
    st.builds(lambda post, days: dwell(post, 1 + post % 4, days), posts, st.floats(0, 2)),
    max_size=30,
)


@given(likes, dwells)
def test_an_interest_has_length_one_and_affinities_lie_between_zero_and_one(
    engagements: list[Engagement], looks: list[Impression]
) -> None:
    interest, affinities = taste(engagements, looks, EMBEDDINGS, NOW, WEEK)
    assert (interest is None) == (not engagements and not looks)
    if interest is not None:
        assert interest.shape == (DIMENSIONS,)
        assert interest.dtype == np.float32
        assert np.linalg.norm(interest) == pytest.approx(1, abs=1e-5)
    authors = {each.author_id for each in engagements} | {each.author_id for each in looks}
    assert set(affinities) == authors
    assert all(0 <= affinity <= 1 for affinity in affinities.values())


@given(likes, dwells)
def test_the_order_and_the_repeats_of_looks_do_not_matter(
    engagements: list[Engagement], looks: list[Impression]
) -> None:
    one = taste(engagements, looks, EMBEDDINGS, NOW, WEEK)
    other = taste(engagements[::-1], [*looks[::-1], *looks], EMBEDDINGS, NOW, WEEK)
    assert one[1] == pytest.approx(other[1])
    if one[0] is not None and other[0] is not None:
        assert one[0] == pytest.approx(other[0], abs=1e-5)


def test_without_history_there_is_no_interest() -> None:
    assert taste([], [], EMBEDDINGS, NOW, WEEK) == (None, {})


def test_a_recent_like_outweighs_an_old_one_by_the_half_life() -> None:
    interest, _ = taste([like(1, days_ago=0), like(2, days_ago=7)], [], EMBEDDINGS, NOW, WEEK)
    assert interest is not None
    assert interest[1] == pytest.approx(2 * interest[2], rel=1e-5)


def test_a_like_outweighs_a_long_look() -> None:
    interest, _ = taste([like(1)], [dwell(2)], EMBEDDINGS, NOW, WEEK)
    assert interest is not None
    assert interest[2] == pytest.approx(0.3 * interest[1], rel=1e-5)


def test_a_like_taken_back_leaves_no_trace() -> None:
    before = taste([like(1)], [], EMBEDDINGS, NOW, WEEK)
    after = taste([like(1), like(2, author_id=9)][:1], [], EMBEDDINGS, NOW, WEEK)
    assert np.array_equal(before[0], after[0])  # type: ignore[arg-type]
    assert before[1] == after[1]


def test_a_post_that_is_not_embedded_counts_for_its_author_only() -> None:
    interest, affinities = taste([like(404, author_id=8)], [], EMBEDDINGS, NOW, WEEK)
    assert interest is None
    assert affinities == {8: pytest.approx(1 - math.exp(-1))}


def test_opposite_interests_are_none() -> None:
    opposite = {1: axis(0), 2: -axis(0)}
    interest, _ = taste([like(1), like(2)], [], opposite, NOW, WEEK)
    assert interest is None


def test_affinity_grows_with_every_like_of_an_author() -> None:
    steps = [taste([like(n) for n in range(count)], [], {}, NOW, WEEK)[1] for count in (1, 2, 3)]
    assert steps[0][1] < steps[1][1] < steps[2][1] < 1


@given(st.integers(0, 10**9), st.integers(1, 10**9))
def test_likes_and_freshness_make_a_post_hotter(like_count: int, more: int) -> None:
    assert hotness(like_count, NOW) < hotness(like_count + more, NOW)
    assert hotness(like_count, NOW) < hotness(like_count, NOW + timedelta(days=1))
    # A tenfold of likes is worth half a day.
    half_a_day = timedelta(seconds=45_000)
    assert hotness(9, NOW) == pytest.approx(hotness(0, NOW + half_a_day))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_engagement_rate_is_a_share(like_count: int, viewer_count: int) -> None:
    assert 0 < engagement_rate(like_count, viewer_count) <= 1
    assert engagement_rate(0, 0) == pytest.approx(0.05)
