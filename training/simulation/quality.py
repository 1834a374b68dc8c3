"""What a model is worth to readers: `python -m training.simulation.quality`.

The world of the demo log goes on for some days under each policy: the same readers with the same
hidden tastes, new posts, and the same chance, so that policies differ by what they show.
"""

import argparse
import json
import multiprocessing
import pickle
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mesh.errors import FeedError, NotFound
from mesh.ids import first_id_at
from mesh.settings import Settings
from stores.connect import Connections
from stores.registry.folder import MODEL, FolderRegistry
from training.simulation import policies
from training.simulation.days import Days, Visited
from training.simulation.feeds import Mesh, Policy
from training.simulation.measures import (
    GROUPS,
    MEASURES,
    Tally,
    best_gain,
    discounted_gain,
    estimate,
    group_of,
)
from training.simulation.readers import inclination
from training.simulation.state import State
from training.simulation.world import MS_PER_DAY, MS_PER_HOUR, START_MS, Ints, Size, World

MODELS = ("deepfm", "deepfm, no discovery", "deepfm, no exploration")
NAMES = ("chronological", "random", "heuristic", *MODELS, "oracle")
# What is held against what.
PAIRS = (("heuristic", "random"), ("deepfm", "heuristic"), ("deepfm", "deepfm, no discovery"))


@dataclass(frozen=True, slots=True)
class Task:
    """One policy's days.

    Args:
        name: Of NAMES.
        log: Folder that `training.simulation` wrote.
        days: How many.
        model: ONNX file of the models' policies.
    """

    name: str
    log: Path
    days: int
    model: Path | None


def measure(task: Task) -> Tally:
    """Goes on from the end of the demo log."""
    said: dict[str, Any] = json.loads((task.log / "world.json").read_text())
    world = World(said["seed"], Size(**{each.name: said[each.name] for each in fields(Size)}))
    # Written by ourselves, beside the log.
    state: State = pickle.loads((task.log / "state.pickle").read_bytes())  # noqa: S301
    policy = _policy(task, world, state)
    running = Days(world, state, policy)
    counting = _Counting(world, state, said["days"], task.days)
    for day in range(said["days"], said["days"] + task.days):
        for visited in running.day(day):
            counting.add(visited)
    return counting.tally()


class _Counting:
    """Adds up visits.

    Args:
        world: Where.
        state: As the feed found it.
        first: The first day that counts.
        days: How many days do.
    """

    def __init__(self, world: World, state: State, first: int, days: int) -> None:
        self._world, self._state = world, state
        begin, end = (START_MS + day * MS_PER_DAY for day in (first, first + days))
        self._posts = tuple(np.searchsorted(world.posts.created_ms, [begin, end]).tolist())
        self._new = np.flatnonzero((world.writes >= first) & (world.writes < first + days))
        self._writing = np.flatnonzero(world.writes < first + days)
        self._group = group_of(world.size.users, world.seed)
        self._feeds, self._likes, self._ndcg = (np.zeros(GROUPS) for _ in range(3))
        self._shown = np.zeros((GROUPS, len(world.posts)))
        self._exposure = np.zeros((GROUPS, world.size.authors))
        self._met: dict[int, set[int]] = {}

    def add(self, visited: Visited) -> None:
        """A visit, before it is taken in."""
        reader, posts = visited.visit.reader, np.array(visited.showing.posts, np.int64)
        group = self._group[reader]
        self._feeds[group] += 1
        self._likes[group] += sum(at is not None for at in visited.showing.liked_ms)
        self._ndcg[group] += self._quality(visited)
        self._shown[group, posts] += 1
        authors = self._world.posts.author[posts]
        np.add.at(self._exposure[group], authors, 1)
        self._met.setdefault(reader, set()).update(np.intersect1d(authors, self._new).tolist())

    def tally(self) -> Tally:
        """All that was added."""
        readers, meetings = np.zeros(GROUPS), np.zeros(GROUPS)
        for reader, met in self._met.items():
            readers[self._group[reader]] += 1
            meetings[self._group[reader]] += len(met)
        return Tally(
            readers=readers,
            feeds=self._feeds,
            likes=self._likes,
            ndcg=self._ndcg,
            meetings=meetings,
            shown=self._shown[:, slice(*self._posts)],
            exposure=self._exposure[:, self._writing],
            newcomers=np.full(GROUPS, float(len(self._new))),
        )

    def _quality(self, visited: Visited) -> float:
        """NDCG by the hidden taste, against the best of all posts that might have been shown."""
        order = np.array([each.index for each in visited.feed.placed], np.int64)
        reader, now_ms = visited.visit.reader, visited.visit.at_ms
        might = inclination(self._world, self._state, reader, self._unseen(reader, now_ms), now_ms)
        best = best_gain(might)
        return min(discounted_gain(visited.likely[order]) / best, 1.0) if best else 0.0

    def _unseen(self, reader: int, now_ms: int) -> Ints:
        mesh, found = Mesh(), self._world.posts
        oldest_id = first_id_at(now_ms - mesh.discovery_days * MS_PER_DAY)
        posts = np.arange(np.searchsorted(found.ids, oldest_id), self._state.published)
        seen = list(self._state.seen(reader, now_ms - mesh.seen_hours * MS_PER_HOUR))
        may_come = ~np.isin(found.ids[posts], seen) & (found.author[posts] != reader)
        return np.asarray(posts[may_come])


def _policy(task: Task, world: World, state: State) -> Policy:
    match task.name:
        case "chronological":
            return policies.CHRONOLOGICAL
        case "random":
            return policies.RANDOM
        case "heuristic":
            return policies.HEURISTIC
        case "oracle":
            return policies.oracle(world, state)
    assert task.model is not None  # noqa: S101  the others are the model's
    mesh = {
        "deepfm": Mesh(),
        "deepfm, no discovery": policies.WITHOUT_DISCOVERY,
        "deepfm, no exploration": policies.WITHOUT_EXPLORATION,
    }
    return replace(policies.by_model(task.model), mesh=mesh[task.name])


def measure_all(log: Path, days: int, model: Path | None, processes: int) -> dict[str, Tally]:
    """Every policy's, those of the model only where there is one."""
    names = [name for name in NAMES if model is not None or name not in MODELS]
    tasks = [Task(name, log, days, model) for name in names]
    # onnxruntime has threads, which do not survive a fork.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawned) as pool:
        return dict(zip(names, pool.map(measure, tasks), strict=True))


def table(tallies: Mapping[str, Tally]) -> Iterator[str]:
    """Lines to print: every policy by every measure, then differences of likes."""
    width = max(map(len, tallies))
    yield " ".join([f"{'policy':{width}}", *(f"{name:>22}" for name in MEASURES)])
    for name, tally in tallies.items():
        found = [estimate(each, tally) for each in MEASURES.values()]
        cells = [f"{each.value:7.3f} [{each.low:.3f}, {each.high:.3f}]" for each in found]
        yield " ".join([f"{name:{width}}", *(f"{cell:>22}" for cell in cells)])
    yield ""
    for one, other in PAIRS:
        if one in tallies and other in tallies:
            more = estimate(MEASURES["likes/feed"], tallies[one], tallies[other])
            yield (
                f"likes/feed, {one} less {other}: {more.value:+.3f} "
                f"[{more.low:+.3f}, {more.high:+.3f}]"
            )


def _model(options: argparse.Namespace, registry: FolderRegistry) -> Path | None:
    """The ONNX file that is asked for, else the promoted version's; None without one."""
    if options.model is not None:
        return Path(options.model)
    number = options.version if options.version is not None else registry.state().promoted
    return None if number is None else registry.folder(number) / MODEL


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m training.simulation.quality")
    parser.add_argument("--log", type=Path, default=Path(".feed/demo-log"))
    parser.add_argument("--days", type=int, default=2, help="under each policy (2)")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--version", type=int, help="of the registry (the promoted one)")
    chosen.add_argument("--model", type=Path, help="an ONNX file instead")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    try:
        if not (options.log / "world.json").is_file():
            raise NotFound(f"there is no demo log in {options.log}; see `make demo-log`")
        model = _model(options, Connections(Settings()).registry())
    except FeedError as error:
        sys.exit(str(error))
    if model is None:
        print("No version is promoted, so there is no DeepFM below; see --version.\n")
    tallies = measure_all(options.log, options.days, model, options.processes)
    feeds = int(next(iter(tallies.values())).feeds.sum())
    print(f"{options.days} days, {feeds:,} feeds under each policy; 95 % intervals\n")
    print("\n".join(table(tallies)))


if __name__ == "__main__":
    main()
