"""The re-ranking rules: what holds for every feed, page by page."""

import math
import random
import time
from collections import Counter

import pytest
from feed.v1 import hydrator_pb2 as h
from hypothesis import given
from hypothesis import strategies as st

from hydrator_svc.rerank import MAX_PER_AUTHOR, Bounds, Exploration, Item, Placed, rerank

BOUNDS = Bounds(page_size=20, share_min=0.2, share_max=0.6)


def items(*rows: tuple[int, bool, float]) -> list[Item]:
    return [Item(index, *row) for index, row in enumerate(rows)]


def order(placed: list[Placed]) -> list[int]:
    return [each.index for each in placed]


some_items = st.lists(
    st.tuples(st.integers(1, 12), st.booleans(), st.floats(0, 1, width=32)), max_size=70
).map(lambda rows: items(*rows))
distinct_authors = st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), max_size=70).map(
    lambda rows: items(*((author, *row) for author, row in enumerate(rows)))
)
some_bounds = st.builds(
    lambda size, low, high: Bounds(size, min(low, high), max(low, high)),
    st.integers(1, 25),
    st.floats(0, 1),
    st.floats(0, 1),
)
# The last is no exploration at all.
some_exploration = (
    st.builds(
        lambda epsilon, pool, seed: Exploration(epsilon, pool, random.Random(seed)),
        st.floats(0, 1),
        st.integers(1, 12),
        st.integers(0, 2**32),
    )
    | st.none()
)


@given(some_items, some_bounds, some_exploration)
def test_every_candidate_is_placed_once(
    given_: list[Item], bounds: Bounds, exploration: Exploration | None
) -> None:
    assert sorted(order(rerank(given_, bounds, exploration))) == list(range(len(given_)))


@given(distinct_authors)
def test_without_a_binding_rule_the_score_decides(given_: list[Item]) -> None:
    placed = rerank(given_, Bounds(20, 0, 1))
    assert order(placed) == order_by_score(given_)
    assert {each.placement for each in placed} <= {h.PLACEMENT_BY_SCORE}


def order_by_score(given_: list[Item]) -> list[int]:
    return [each.index for each in sorted(given_, key=lambda item: -item.score)]


@given(some_items, some_bounds, some_exploration)
def test_a_rule_is_broken_only_where_every_candidate_left_breaks_one(
    given_: list[Item], bounds: Bounds, exploration: Exploration | None
) -> None:
    answer = rerank(given_, bounds, exploration)
    placed = [given_[index] for index in order(answer)]
    for place, item in enumerate(placed):
        page = placed[place - place % bounds.page_size : place]
        left = placed[place:]
        above = placed[place - 1] if place else None
        length = min(bounds.page_size, len(left) + len(page))
        if breaks_a_rule(item, page, above, left=left, bounds=bounds, length=length):
            for other in left:
                assert breaks_a_rule(other, page, above, left=left, bounds=bounds, length=length)
        elif answer[place].placement != h.PLACEMENT_EXPLORATION:
            better = [other for other in left if other.score > item.score]
            for other in better:
                assert breaks_a_rule(other, page, above, left=left, bounds=bounds, length=length)


def breaks_a_rule(
    item: Item,
    page: list[Item],
    above: Item | None,
    *,
    left: list[Item],
    bounds: Bounds,
    length: int,
) -> bool:
    """The rules once more, as said in words."""
    if above is not None and above.author_id == item.author_id:
        return True
    if sum(each.author_id == item.author_id for each in page) >= MAX_PER_AUTHOR:
        return True
    if len({each.is_stranger for each in left}) == 1:
        return False
    strangers = sum(each.is_stranger for each in page)
    least, greatest = bounds.strangers(length)
    if item.is_stranger:
        return strangers >= greatest
    return least - strangers > length - len(page) - 1


@given(distinct_authors, some_bounds, some_exploration)
def test_the_share_of_strangers_is_kept_while_both_kinds_are_left(
    given_: list[Item], bounds: Bounds, exploration: Exploration | None
) -> None:
    placed = [given_[index] for index in order(rerank(given_, bounds, exploration))]
    for start in range(0, len(placed), bounds.page_size):
        page, after = placed[start : start + bounds.page_size], placed[start + bounds.page_size :]
        if len({each.is_stranger for each in after}) == 2:
            least, greatest = bounds.strangers(len(page))
            assert least <= sum(each.is_stranger for each in page) <= greatest


def test_a_third_post_of_one_author_waits_for_the_next_page() -> None:
    favourite = [(1, False, 0.9 - place / 100) for place in range(3)]
    others = [(author, False, 0.5 - author / 100) for author in range(2, 7)]
    placed = rerank(items(*favourite, *others), Bounds(4, 0, 1))
    assert order(placed) == [0, 3, 1, 4, 2, 5, 6, 7]
    assert [each.placement for each in placed[:5]] == [
        h.PLACEMENT_BY_SCORE,
        h.PLACEMENT_BY_SCORE,
        h.PLACEMENT_AUTHOR_SPREAD,
        h.PLACEMENT_BY_SCORE,
        h.PLACEMENT_AUTHOR_SPREAD,
    ]


def test_posts_of_one_author_are_parted_across_pages_too() -> None:
    given_ = items((1, False, 0.9), (2, False, 0.8), (2, False, 0.7), (3, False, 0.6))
    assert order(rerank(given_, Bounds(2, 0, 1))) == [0, 1, 3, 2]


def test_strangers_are_lifted_when_the_page_would_have_too_few() -> None:
    known = [(author, False, 0.9) for author in range(1, 30)]
    strangers = [(author, True, 0.1) for author in range(100, 110)]
    placed = rerank(items(*known, *strangers), BOUNDS)
    lifted = [each for each in placed[:20] if each.index >= len(known)]
    assert len(lifted) == 4
    assert {each.placement for each in lifted} == {h.PLACEMENT_DISCOVERY_SHARE}


def test_strangers_wait_when_the_page_has_enough() -> None:
    strangers = [(author, True, 0.9) for author in range(100, 130)]
    known = [(author, False, 0.1) for author in range(1, 30)]
    placed = rerank(items(*strangers, *known), BOUNDS)
    assert sum(each.index < len(strangers) for each in placed[:20]) == 12


def test_a_page_is_full_even_when_one_author_is_all_there_is() -> None:
    placed = rerank(items(*((7, True, place / 100) for place in range(50))), BOUNDS)
    assert order(placed) == list(range(49, -1, -1))


def test_a_score_that_is_no_number_comes_last() -> None:
    given_ = items((1, False, math.nan), (2, False, 0.1), (3, False, math.nan), (4, False, 0.2))
    assert order(rerank(given_, Bounds(4, 0, 1))) == [3, 1, 0, 2]


@pytest.mark.parametrize(
    ("length", "expected"), [(20, (4, 12)), (5, (1, 3)), (2, (1, 1)), (1, (0, 1)), (30, (6, 18))]
)
def test_the_bounds_of_a_page_are_whole_numbers(length: int, expected: tuple[int, int]) -> None:
    assert BOUNDS.strangers(length) == expected


@given(some_items, some_bounds, some_exploration)
def test_a_place_is_drawn_from_the_best_that_break_the_least(
    given_: list[Item], bounds: Bounds, exploration: Exploration | None
) -> None:
    placed = rerank(given_, bounds, exploration)
    if exploration is None or exploration.epsilon == 0:
        assert all((each.pool, each.propensity) == ((), 1) for each in placed)
        assert placed == rerank(given_, bounds)
        return
    gone: set[int] = set()
    for each in placed:
        assert each.index in each.pool
        assert 1 <= len(each.pool) <= exploration.pool
        assert len(set(each.pool)) == len(each.pool)
        assert gone.isdisjoint(each.pool)
        scores = [given_[index].score for index in each.pool]
        assert scores == sorted(scores, reverse=True)
        is_best = each.pool[0] == each.index
        assert (each.placement == h.PLACEMENT_EXPLORATION) == (not is_best)
        # All of the pool together are certain.
        others = (len(each.pool) - 1) * exploration.epsilon / len(each.pool)
        if is_best:
            assert each.propensity + others == pytest.approx(1)
        else:
            assert each.propensity == pytest.approx(exploration.epsilon / len(each.pool))
        gone.add(each.index)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.0])
def test_propensities_are_how_often_it_happens(epsilon: float) -> None:
    given_ = items(*((author % 7, author % 3 == 0, 1 - author / 50) for author in range(25)))
    exploration = Exploration(epsilon, 4, random.Random(5))
    draws, place = 20_000, 2
    # What may come third depends on what came before: counted for each beginning.
    seen: Counter[tuple[int, ...]] = Counter()
    said: dict[tuple[int, ...], float] = {}
    pools: dict[tuple[int, ...], tuple[int, ...]] = {}
    for _ in range(draws):
        placed = rerank(given_, Bounds(5, 0.2, 0.6), exploration)
        beginning = tuple(order(placed)[: place + 1])
        seen[beginning] += 1
        said[beginning] = math.prod(each.propensity for each in placed[: place + 1])
        pools[beginning[:place]] = placed[place].pool
    for beginning, propensity in said.items():
        spread = math.sqrt(propensity * (1 - propensity) / draws)
        assert abs(seen[beginning] / draws - propensity) <= 5 * spread + 1e-9
    assert sum(said.values()) == pytest.approx(1, abs=0.02)
    assert {len(pool) for pool in pools.values()} == {4}


def test_what_chance_passed_over_did_not_wait_for_a_rule() -> None:
    given_ = items(*((author, False, 1 - author / 50) for author in range(20)))
    placed = rerank(given_, BOUNDS, Exploration(1.0, 5, random.Random(1)))
    assert {each.placement for each in placed} == {h.PLACEMENT_BY_SCORE, h.PLACEMENT_EXPLORATION}


def test_the_same_seed_gives_the_same_order() -> None:
    given_ = items(*((author, author % 2 == 0, 1 - author / 50) for author in range(40)))
    once, again = (rerank(given_, BOUNDS, Exploration(0.5, 10, random.Random(3))) for _ in range(2))
    assert once == again
    assert once != rerank(given_, BOUNDS)


@pytest.mark.parametrize("authors", [1, 3, 60, 150])
@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_a_feed_of_150_is_ordered_in_milliseconds(authors: int, epsilon: float) -> None:
    given_ = items(*((n * 7 % authors, n % 2 == 0, n * 31 % 101 / 101) for n in range(150)))
    exploration = Exploration(epsilon, 10, random.Random(0))
    fastest = min(timed(given_, exploration) for _ in range(10))
    assert fastest < 0.01  # measured: 0.3 to 1.5 ms, with exploration up to 1.9 ms


def timed(given_: list[Item], exploration: Exploration) -> float:
    started = time.perf_counter()
    rerank(given_, BOUNDS, exploration)
    return time.perf_counter() - started
