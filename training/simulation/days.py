"""Days go by: posts appear, readers come, and what they did is taken in once they have gone."""

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from training.simulation import feeds, readers
from training.simulation.feeds import Feed, Policy
from training.simulation.history import History
from training.simulation.state import Changes, Showing, State
from training.simulation.world import MS_PER_DAY, START_MS, Floats, Ints, Visit, World

# A post is embedded, and a visit taken in, after this long.
_WORKERS_MS = 2_000
# Of an author that the reader is fond of, likes one post of, and does not follow yet.
_FOLLOWS = 0.25


@dataclass(frozen=True, slots=True)
class Visited:
    """One visit, as it is known to who made the world.

    Args:
        visit: Who and when.
        feed: What they were served.
        likely: How likely each candidate is liked by the reader, shape (n,).
        showing: What they did.
    """

    visit: Visit
    feed: Feed
    likely: Floats
    showing: Showing


class Days:
    """The mesh and its readers, from day to day.

    Args:
        world: Where.
        state: Of the stores; is changed.
        policy: How feeds are ordered.
        history: Where every change of stored features goes, if anywhere.
    """

    def __init__(
        self, world: World, state: State, policy: Policy, history: History | None = None
    ) -> None:
        self._world = world
        self._state = state
        self._policy = policy
        self._history = history
        self._due: list[tuple[int, int, Callable[[int], Changes]]] = []
        self._turn = count()
        self._last_us = 0

    def begin(self) -> None:
        """Before the first day: everybody's features as they are, and the posts of before."""
        begun_ms = int(self._world.posts.created_ms[0]) // 10 * 10 - 5
        everybody = Changes(users=set(range(self._world.size.users)))
        self._record(everybody, begun_ms)
        self._publish_until(START_MS)

    def day(self, day: int) -> Iterator[Visited]:
        """The visits of a day, one after another; afterwards all of them are taken in."""
        for visit in self._world.visits(day):
            self._publish_until(visit.at_ms)
            self._catch_up(visit.at_ms)
            yield self._visit(day, visit)
        end_ms = START_MS + (day + 1) * MS_PER_DAY
        self._publish_until(end_ms)
        self._catch_up(end_ms)

    def end(self) -> None:
        """Takes in what is still on its way."""
        self._catch_up(None)

    def _visit(self, day: int, visit: Visit) -> Visited:
        world, reader = self._world, visit.reader
        chance = world.chance(day, reader, visit.number)
        order = random.Random(int(chance.integers(1 << 62)))
        feed = feeds.make(world, self._state, self._policy, reader, visit.at_ms, order)
        likely = readers.inclination(world, self._state, reader, feed.posts, visit.at_ms)
        placed = np.array([each.index for each in feed.placed], np.int64)
        acts = readers.look(chance, likely[placed])
        feed_id = f"{self._world.seed:x}-{day}-{reader}-{visit.number}"
        showing = _showing(feed_id, visit, feed.posts[placed], acts)
        over_ms = visit.at_ms + int((acts.seen_ms + acts.dwell_ms).max(initial=0)) + _WORKERS_MS
        follows = chance.random(len(showing.posts))
        self._later(over_ms, lambda now_ms: self._take_in(showing, follows, now_ms))
        return Visited(visit, feed, likely, showing)

    def _take_in(self, showing: Showing, draws: Floats, now_ms: int) -> Changes:
        changes = self._state.take_in(self._world, showing, now_ms)
        rows = zip(showing.posts, showing.liked_ms, draws, strict=True)
        for post, liked_ms, draw in rows:
            author = int(self._world.posts.author[post])
            fond = self._world.fondness(showing.reader, author) > 0
            if liked_ms is not None and fond and draw < _FOLLOWS:
                changes.users |= self._state.follow(showing.reader, author).users
        return changes

    def _publish_until(self, now_ms: int) -> None:
        created = self._world.posts.created_ms
        while self._state.published < len(created):
            visible_ms = int(created[self._state.published]) + _WORKERS_MS
            # Feeds are made at multiples of 10 ms, and nothing changes at those.
            visible_ms = visible_ms // 10 * 10 + 5
            if visible_ms >= now_ms:
                return
            self._catch_up(visible_ms)
            self._record(self._state.publish(self._world), visible_ms)

    def _later(self, at_ms: int, act: Callable[[int], Changes]) -> None:
        heapq.heappush(self._due, (at_ms // 10 * 10 + 5, next(self._turn), act))

    def _catch_up(self, now_ms: int | None) -> None:
        while self._due and (now_ms is None or self._due[0][0] < now_ms):
            at_ms, _, act = heapq.heappop(self._due)
            self._record(act(at_ms), at_ms)

    def _record(self, changes: Changes, at_ms: int) -> None:
        """Within the millisecond, each at a time of its own."""
        if self._history is not None:
            self._last_us = max(at_ms * 1000, self._last_us + 1)
            self._history.record(self._state, changes, self._last_us)


def _showing(feed_id: str, visit: Visit, posts: Ints, acts: readers.Acts) -> Showing:
    seen_ms = visit.at_ms + acts.seen_ms
    liked_ms = seen_ms + acts.dwell_ms * 4 // 5
    return Showing(
        reader=visit.reader,
        feed_id=feed_id,
        posts=posts[: len(seen_ms)].tolist(),
        seen_ms=seen_ms.tolist(),
        dwell_ms=[
            ms if told else None
            for ms, told in zip(acts.dwell_ms.tolist(), acts.told.tolist(), strict=True)
        ],
        liked_ms=[
            ms if liked else None
            for ms, liked in zip(liked_ms.tolist(), acts.liked.tolist(), strict=True)
        ],
    )
