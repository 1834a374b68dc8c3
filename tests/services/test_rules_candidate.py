"""How retrieved posts become candidates."""

import random

from feed.v1 import common_pb2 as c
from hypothesis import given
from hypothesis import strategies as st

from candidate_svc.rules import (
    Candidate,
    exploration_slots,
    from_strangers,
    newest,
    ranked,
    shuffled,
    with_exploration,
)

ids = st.lists(st.integers(1, 200), max_size=60)
FOUND, DRAWN = c.CANDIDATE_SOURCE_DISCOVERY, c.CANDIDATE_SOURCE_EXPLORATION


def as_candidates(post_ids: list[int], source: c.CandidateSource.ValueType) -> list[Candidate]:
    return ranked(post_ids, dict.fromkeys(post_ids, 9), source)


@given(st.lists(ids, max_size=5), st.integers(0, 80))
def test_lists_merge_into_the_newest_once_each(lists: list[list[int]], limit: int) -> None:
    expected = sorted({post_id for one in lists for post_id in one}, reverse=True)
    assert newest(lists, limit) == expected[:limit]


def test_a_rank_becomes_a_falling_score_and_a_missing_author_0() -> None:
    one, two = ranked([7, 8], {7: 70}, c.CANDIDATE_SOURCE_SOCIAL)
    assert (one.author_id, two.author_id) == (70, 0)
    assert one.score == 1
    assert two.score == 0.5


def test_strangers_exist_are_young_enough_and_not_excluded() -> None:
    authors = {1: 10, 5: 10, 6: 11, 7: 12}
    assert from_strangers([7, 6, 5, 4, 1], authors, excluded={11}, oldest_id=5) == [7, 5]


@given(
    st.lists(st.integers(1, 60), max_size=60, unique=True),
    st.lists(st.integers(1, 60), max_size=60, unique=True),
    st.integers(0, 20),
    st.integers(20, 100),
)
def test_exploration_takes_its_slots_and_no_more(
    found: list[int], drawable: list[int], slots: int, limit: int
) -> None:
    joined = with_exploration(
        as_candidates(found, FOUND), as_candidates(drawable, DRAWN), slots, limit
    )
    post_ids = [each.post_id for each in joined]
    explored = [each.post_id for each in joined if each.source == DRAWN]
    new = [post_id for post_id in drawable if post_id not in found]
    assert len(set(post_ids)) == len(post_ids) <= limit
    assert explored == new[:slots]
    assert post_ids == found[: limit - len(explored)] + explored


def test_a_tenth_of_100_candidates_are_10_slots() -> None:
    assert exploration_slots(100, 0.1) == 10
    assert exploration_slots(100, 0) == 0


def test_a_seeded_draw_repeats_itself() -> None:
    pool = list(range(50))
    assert shuffled(pool, random.Random(3)) == shuffled(pool, random.Random(3)) != pool
