"""A log of feeds to learn from: `python -m training.simulation --out FOLDER`."""

import argparse
import json
import os
import pickle
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

from training.simulation.days import Days
from training.simulation.history import History
from training.simulation.policies import HEURISTIC
from training.simulation.served import Served
from training.simulation.state import State
from training.simulation.world import DAYS, DEMO, START_MS, Size, World


def simulate(out: Path, *, seed: int, days: int, size: Size) -> dict[str, int]:
    """Writes `log/`, `feast/offline/`, `state.pickle` and, last of all, `world.json` below `out`.

    Returns:
        How many feeds, impressions and likes there were.
    """
    world = World(seed, size)
    state = State(world)
    history = History(out / "feast", world)
    served = Served(out / "log", world)
    running = Days(world, state, HEURISTIC, history)
    counts = {"feeds": 0, "impressions": 0, "likes": 0}
    running.begin()
    for day in range(days):
        started = time.monotonic()
        for visited in running.day(day):
            served.add(visited.feed, HEURISTIC.version, visited.visit.at_ms, visited.showing)
            counts["feeds"] += 1
            counts["impressions"] += len(visited.showing.posts)
            counts["likes"] += sum(at is not None for at in visited.showing.liked_ms)
        served.flush()
        history.flush()
        took = time.monotonic() - started
        so_far = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        print(f"day {day + 1} of {days}: {so_far} ({took:.0f} s)", flush=True)
    running.end()
    history.flush()
    (out / "state.pickle").write_bytes(pickle.dumps(state))
    said = {"seed": seed, "days": days, "start_ms": START_MS, **asdict(size), **counts}
    (out / "world.json").write_text(json.dumps(said, indent=2) + "\n")
    return counts


def main() -> None:
    """Replaces the folder, once everything is written."""
    parser = argparse.ArgumentParser(prog="python -m training.simulation")
    parser.add_argument("--out", type=Path, required=True, help="folder, which is replaced")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=7, help=f"1 to {DAYS} (7)")
    parser.add_argument("--users", type=int, default=DEMO.users)
    parser.add_argument("--authors", type=int, default=DEMO.authors)
    options = parser.parse_args()
    size = replace(DEMO, users=options.users, authors=options.authors)
    unfinished = options.out.with_name(f".{options.out.name}-{os.getpid()}")
    try:
        simulate(unfinished, seed=options.seed, days=options.days, size=size)
        shutil.rmtree(options.out, ignore_errors=True)
        unfinished.rename(options.out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    main()
