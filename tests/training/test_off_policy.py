"""What chance chose, as it is read from the log of feeds, and what another policy chooses there."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from ranker_svc.features import COLUMN
from tests.training.chosen import EPSILON, NOON, POOL, SEEN, Journal, World
from training.pools import Choices

READER = 7
SIMILARITY = {"topic_similarity": {1: 0.1, 2: 0.2, 3: 0.3}}
# Post 2 was drawn from two, though 1 was better; then 1 was all there was, and 3 had no pool.
ORDER = [(2, 0.15, [1, 2]), (1, 1.0, [1]), (3, 1.0, [])]


def a_feed_seen_up_to(last_place: int) -> Journal:
    journal = Journal()
    journal.serve("f", READER, ORDER, features=SIMILARITY)
    for post, *_ in ORDER[: last_place + 1]:
        journal.see("f", READER, post)
    return journal


def test_places_without_a_pool_are_left_out(tmp_path: Path) -> None:
    choices = Choices.read(a_feed_seen_up_to(2).write(tmp_path))
    assert choices.position.tolist() == [0, 1]
    assert choices.size.tolist() == [2, 1]


def test_places_that_nobody_saw_are_left_out(tmp_path: Path) -> None:
    choices = Choices.read(a_feed_seen_up_to(0).write(tmp_path))
    assert choices.position.tolist() == [0]


def test_a_post_seen_in_another_feed_is_not_seen_in_this_one(tmp_path: Path) -> None:
    journal = a_feed_seen_up_to(0)
    journal.see("other", READER, 1)
    assert len(Choices.read(journal.write(tmp_path))) == 1


def test_feeds_that_the_ranker_did_not_order_are_left_out(tmp_path: Path) -> None:
    journal = a_feed_seen_up_to(1)
    journal.serve("g", READER, ORDER)
    journal.see("g", READER, 2)
    assert len(Choices.read(journal.write(tmp_path))) == 2


def test_a_log_in_which_chance_never_chose_is_refused(tmp_path: Path) -> None:
    journal = Journal()
    journal.serve("f", READER, [(1, 1.0, [])], features=SIMILARITY)
    journal.see("f", READER, 1)
    with pytest.raises(ValueError, match="no place"):
        Choices.read(journal.write(tmp_path))


@pytest.mark.parametrize(
    ("acts", "reward"),
    [
        ([], 0),
        ([("like", 1)], 1),
        ([("like", 24 * 60)], 1),
        ([("like", 24 * 60 + 1)], 0),
        ([("like", -1)], 0),
        ([("like", 1), ("unlike", 2)], 0),
        ([("like", 1), ("unlike", 2), ("like", 3)], 1),
        ([("like", -2), ("unlike", 1)], 0),
    ],
)
def test_a_like_counts_within_a_day_of_seeing_unless_it_is_undone(
    tmp_path: Path, acts: list[tuple[str, int]], reward: int
) -> None:
    journal = a_feed_seen_up_to(0)
    for action, minutes in acts:
        journal.act(action, READER, 2, NOON + timedelta(minutes=minutes))
        journal.act("like", READER + 1, 2, NOON + timedelta(minutes=minutes))
    choices = Choices.read(journal.write(tmp_path))
    assert choices.reward.tolist() == [reward]


def test_a_day_is_read_alone(tmp_path: Path) -> None:
    world = World(feeds=6)
    log = world.journal.write(tmp_path)
    second = (NOON + timedelta(days=1)).date()
    assert len(Choices.read(log)) == 6 * SEEN
    assert len(Choices.read(log, second, second)) == 2 * SEEN


def test_the_features_of_every_post_of_a_pool_are_known(tmp_path: Path) -> None:
    choices = Choices.read(World(feeds=6).journal.write(tmp_path))
    age = choices.features.dense[:, COLUMN["age_hours"]][choices.pool]
    there = choices.pool >= 0
    # The greater the age, the less the score: pools have the best first.
    assert np.all((np.diff(age, axis=1) >= 0) | ~there[:, 1:])
    assert len(np.unique(choices.feed)) == 6


def test_the_log_s_chances_are_those_that_it_was_made_with(tmp_path: Path) -> None:
    choices = Choices.read(World(feeds=30).journal.write(tmp_path))
    logged = choices.logged()
    several = choices.size > 1
    assert choices.epsilon[several] == pytest.approx(EPSILON, abs=1e-5)
    assert np.sum(logged, axis=1) == pytest.approx(1)
    taken = logged[np.arange(len(choices)), choices.chosen]
    assert taken == pytest.approx(choices.propensity, abs=1e-6)


def test_another_policy_s_chances_sum_to_one_and_favour_its_best(tmp_path: Path) -> None:
    choices = Choices.read(World(feeds=30).journal.write(tmp_path))
    scores = choices.features.dense[:, COLUMN["topic_similarity"]]
    chances = choices.by_score(scores)
    assert np.sum(chances, axis=1) == pytest.approx(1)
    assert np.all(chances[choices.pool < 0] == 0)
    full = choices.size == POOL
    best = np.argmax(scores[choices.pool[full]], axis=1)
    assert chances[full].max(axis=1) == pytest.approx(1 - EPSILON + EPSILON / POOL, abs=1e-5)
    assert np.array_equal(chances[full].argmax(axis=1), best)


def test_scores_that_are_all_alike_leave_the_log_s_order(tmp_path: Path) -> None:
    choices = Choices.read(World(feeds=6).journal.write(tmp_path))
    for score in (0.5, np.nan):
        scores = np.full(len(choices.features), score, np.float32)
        assert np.array_equal(choices.by_score(scores), choices.logged())
