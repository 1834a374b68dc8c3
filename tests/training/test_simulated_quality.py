"""What a policy is worth: the measures, and readers who like what fits them."""

from pathlib import Path

import numpy as np
import pytest

from training.simulation import measures, quality
from training.simulation.__main__ import simulate
from training.simulation.feeds import FURTHEST
from training.simulation.measures import MEASURES, Tally, estimate
from training.simulation.readers import look
from training.simulation.world import Size

SIZE = Size(users=100, authors=60, visits=2.0, posts=3.0)


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tally]:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, seed=5, days=1, size=SIZE)
    tasks = [quality.Task(name, folder, 1, None) for name in ("random", "heuristic", "oracle")]
    return {task.name: quality.measure(task) for task in tasks}


def test_readers_like_what_fits_them(tallies: dict[str, Tally]) -> None:
    likes = MEASURES["likes/feed"]
    for better, worse in (("heuristic", "random"), ("oracle", "heuristic")):
        assert estimate(likes, tallies[better], tallies[worse]).low > 0
        assert MEASURES["NDCG@20"](tallies[better]) > MEASURES["NDCG@20"](tallies[worse])


def test_each_policy_has_the_same_visits(tallies: dict[str, Tally]) -> None:
    first, *others = tallies.values()
    for other in others:
        assert (other.feeds == first.feeds).all()


def test_measures_are_shares(tallies: dict[str, Tally]) -> None:
    for tally in tallies.values():
        assert all(0 < MEASURES[name](tally) <= 1 for name in MEASURES if name != "likes/feed")


def test_the_table_has_a_line_for_each_policy(tallies: dict[str, Tally]) -> None:
    lines = list(quality.table(tallies))
    assert [line.split()[0] for line in lines[1:4]] == list(tallies)
    assert "heuristic less random" in lines[-1]


def test_gini_is_0_when_all_alike_and_near_1_when_one_has_it_all() -> None:
    alike = _tally(exposure=np.full((4, 50), 2.0))
    one = _tally(exposure=np.eye(1, 50).repeat(4, axis=0))
    assert measures.gini(alike) == pytest.approx(0)
    assert measures.gini(one) == pytest.approx(1 - 1 / 50)


def test_coverage_counts_posts_that_anybody_was_shown() -> None:
    shown = np.array([[1.0, 0, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert measures.coverage(_tally(shown=shown)) == 0.5


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    likes = np.array([3.0, 5, 4, 8])
    found = estimate(MEASURES["likes/feed"], _tally(likes=likes))
    error = likes.std(ddof=1) / 2
    assert found.value == 5
    assert found.high - found.value == pytest.approx(1.96 * error)


def test_the_best_order_has_an_ndcg_of_1() -> None:
    gains = np.array([0.2, 0.9, 0.5])
    assert measures.discounted_gain(np.array([0.9, 0.5, 0.2])) == measures.best_gain(gains)
    assert measures.discounted_gain(gains) < measures.best_gain(gains)


def test_who_likes_more_stays_longer_and_further_down_less_is_looked_at() -> None:
    chance = np.random.default_rng(1)
    visits = [look(chance, np.full(FURTHEST, likely)) for likely in [0.1, 0.6] * 500]
    cold, warm = visits[::2], visits[1::2]
    assert sum(v.liked.sum() for v in warm) > 3 * sum(v.liked.sum() for v in cold)
    dwell = [np.concatenate([v.dwell_ms for v in some]).mean() for some in (cold, warm)]
    assert dwell[1] > 1.5 * dwell[0]
    first = [v.liked[:5].mean() for v in warm if len(v.liked) > 40]
    last = [v.liked[35:40].mean() for v in warm if len(v.liked) > 40]
    assert np.mean(first) > 1.2 * np.mean(last)


def test_no_reader_looks_at_more_than_there_is() -> None:
    chance = np.random.default_rng(2)
    assert all(len(look(chance, np.full(7, 0.5)).liked) <= 7 for _ in range(50))
    assert len(look(chance, np.zeros(0)).liked) == 0


def test_without_a_demo_log_quality_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["quality", "--log", str(tmp_path)])
    with pytest.raises(SystemExit, match="make demo-log"):
        quality.main()


def _tally(**given: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Tally:
    four = {
        name: np.ones(4) for name in ("readers", "feeds", "likes", "ndcg", "meetings", "newcomers")
    }
    return Tally(**{**four, "shown": np.ones((4, 3)), "exposure": np.ones((4, 3)), **given})
