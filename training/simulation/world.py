"""The world that feeds are made in: users, posts, follows, visits, and tastes that stay hidden.

All of it follows from the seed. What a day brings does not depend on how many days are asked for,
so a simulation can go on where another one ended.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesh.ids import first_id_at
from mesh.packing import DIMENSIONS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOPICS = (
    *("astronomy", "baking", "birds", "chess", "cinema", "climbing", "coffee", "cycling"),
    *("design", "football", "gardening", "history", "jazz", "knitting", "languages", "maths"),
    *("mountains", "novels", "painting", "photography", "pottery", "running", "sailing", "trains"),
)
MS_PER_DAY = 86_400_000
MS_PER_HOUR = 3_600_000
# 2026-01-05, a Monday.
START_MS = 1_767_571_200_000
# So that the first feeds find posts.
EARLY_DAYS = 4
# Days that the world is made for.
DAYS = 14
# What kinds of chance there are; each has streams of its own.
_PEOPLE, _POSTS, _VISITS = 1, 2, 3
# Of how many hidden traits tastes are made.
_TASTE_TRAITS, _STYLE_TRAITS = 6, 4
_BASE = -2.4


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is.

    Args:
        users: All of them read.
        authors: The first of them, who write, too.
        visits: Of a user a day, on average.
        posts: Of an author a day, on average.
    """

    users: int
    authors: int
    visits: float
    posts: float


DEMO = Size(users=800, authors=300, visits=5.0, posts=4.0)


@dataclass(frozen=True, slots=True)
class Posts:
    """n posts in the order of their times, numbered from 0 on; columns of shape (n,).

    Args:
        ids: Snowflakes.
        created_ms: Since the epoch.
        author: Number of the user.
        topic: Number of the topic.
        has_media: Whether there is an image.
        embedding: Unit vectors, float32 (n, 384).
    """

    ids: Ints
    created_ms: Ints
    author: Ints
    topic: Ints
    has_media: NDArray[np.bool_]
    embedding: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Visit:
    """A reader opens the feed: who, when, and their how-many-eth of the day it is."""

    reader: int
    at_ms: int
    number: int


class World:
    """Everything that does not depend on the feeds.

    Attributes:
        user_ids: Snowflakes by number of the user, shape (users,).
        posts: Those of all days.
        joins: The day on which a user begins to read, shape (users,); 0 or less is the first.
        writes: The day on which an author begins to write, shape (authors,).
        follows: Whom each user follows when it begins.

    Args:
        seed: Of all chance.
        size: How much there is.
    """

    def __init__(self, seed: int, size: Size) -> None:
        self.seed = seed
        self.size = size
        chance = np.random.default_rng([seed, _PEOPLE])
        users, authors = size.users, size.authors
        joined = START_MS - 90 * MS_PER_DAY + 60_000 * np.arange(users)
        self.user_ids: Ints = np.array([first_id_at(int(ms)) | 1 << 12 for ms in joined], np.int64)
        self._number = {int(user_id): user for user, user_id in enumerate(self.user_ids)}
        self.joins = np.where(chance.random(users) < 0.7, 0, chance.integers(0, DAYS, users))
        early = chance.random(authors) < 0.7
        self.writes = np.where(early, -EARLY_DAYS, chance.integers(0, DAYS, authors))
        self._activity = size.visits * _heavy(chance, users, 0.5)
        self._output = size.posts * _heavy(chance, authors, 0.7)
        self._shift_h = chance.normal(0, 1.5, users)
        self._centres = _units(chance.normal(size=(len(TOPICS), DIMENSIONS)))
        # Whatever is below is the readers' own: nothing but their acts may show it.
        self._tastes = _traits(chance, users, len(TOPICS), _TASTE_TRAITS, 1.0, 0.4)
        self._likings = _traits(chance, users, authors, _STYLE_TRAITS, 1.2, 0.3)
        self._generosity = chance.normal(0, 0.5, users)
        self._appeal = chance.normal(0, 0.5, authors)
        self._for_media = chance.normal(0.2, 0.4, users)
        self._topics = _own_topics(chance, authors)
        self.follows = self._followed(chance)
        self.posts, self._quality = self._written()

    def user(self, user_id: int) -> int:
        """The number of the user."""
        return self._number[user_id]

    def chance(self, *of: int) -> np.random.Generator:
        """A stream of chance that is the same whatever else was drawn."""
        return np.random.default_rng([self.seed, 10, *of])

    def visits(self, day: int) -> list[Visit]:
        """Those of a day, in the order of their times, which are multiples of 10 ms."""
        chance = np.random.default_rng([self.seed, _VISITS, day])
        counts = chance.poisson(self._activity)
        counts[self.joins > day] = 0
        found = []
        for reader in np.flatnonzero(counts):
            peaks = chance.choice([8.0, 13.0, 20.5], counts[reader], p=[0.3, 0.25, 0.45])
            hours = (peaks + self._shift_h[reader] + chance.normal(0, 1.8, counts[reader])) % 24
            times = START_MS + day * MS_PER_DAY + (hours * MS_PER_HOUR).astype(np.int64) // 10 * 10
            found += [(int(ms), int(reader), number) for number, ms in enumerate(np.sort(times))]
        return [Visit(reader, ms, number) for ms, reader, number in sorted(found)]

    def likelihood(self, reader: int, posts: Ints, now_ms: int, again: NDArray[np.bool_]) -> Floats:
        """How likely the reader likes each of these posts when they look at it, shape (n,).

        Args:
            reader: Number of the user.
            posts: Numbers.
            now_ms: When they look.
            again: Which of them they were shown before.
        """
        found, author = self.posts, self.posts.author[posts]
        hours = np.maximum(now_ms - found.created_ms[posts], 0) / MS_PER_HOUR
        wish = (
            _BASE
            + self._generosity[reader]
            + self._tastes[reader, found.topic[posts]]
            + self._likings[reader, author]
            + self._appeal[author]
            + self._quality[posts]
            + self._for_media[reader] * found.has_media[posts]
            - 0.35 * np.log1p(hours / 12)
            - 0.7 * again
        )
        likely: Floats = 1 / (1 + np.exp(-wish))
        return likely

    def fondness(self, reader: int, author: int) -> float:
        """How much the reader likes the author, about 0 on average and mostly within 2 of it."""
        return float(self._likings[reader, author] + self._appeal[author])

    def _followed(self, chance: np.random.Generator) -> list[list[int]]:
        authors = self.size.authors
        drawn = (
            np.stack([self._tastes[:, topics].mean(1) for topics in self._topics], axis=1)
            + self._likings
            + self._appeal
            + chance.gumbel(0, 1.3, (self.size.users, authors))
        )
        drawn[:, self.writes >= 0] = -np.inf
        drawn[np.arange(authors), np.arange(authors)] = -np.inf
        there = int((self.writes < 0).sum()) - 1
        counts = np.clip(18 * _heavy(chance, self.size.users, 0.6), 3, max(there, 0)).astype(int)
        best = np.argsort(-drawn, axis=1)
        return [sorted(map(int, row[:n])) for row, n in zip(best, counts, strict=True)]

    def _written(self) -> tuple[Posts, Floats]:
        days = [self._written_on(day) for day in range(-EARLY_DAYS, DAYS)]
        columns: list[NDArray[Any]] = [np.concatenate(column) for column in zip(*days, strict=True)]
        created, author, topic, media, embedding, quality = columns
        ids = [first_id_at(int(ms)) | 2 << 12 | n % 4096 for n, ms in enumerate(created)]
        return Posts(np.array(ids, np.int64), created, author, topic, media, embedding), quality

    def _written_on(self, day: int) -> tuple[NDArray[Any], ...]:
        chance = np.random.default_rng([self.seed, _POSTS, day + EARLY_DAYS])
        counts = chance.poisson(self._output)
        # Whoever begins says something.
        counts[self.writes == day] += 1
        counts[self.writes > day] = 0
        author = np.repeat(np.arange(self.size.authors), counts)
        hours = (chance.normal(15, 5, len(author)) % 24) * MS_PER_HOUR
        created = START_MS + day * MS_PER_DAY + hours.astype(np.int64)
        order = np.argsort(created, kind="stable")
        created, author = created[order], author[order]
        pick = chance.choice(3, len(author), p=[0.6, 0.3, 0.1])
        topic = self._topics[author, pick]
        noise = _units(chance.normal(size=(len(author), DIMENSIONS)))
        embedding = _units(0.75 * self._centres[topic] + 0.65 * noise).astype(np.float32)
        media = chance.random(len(author)) < 0.4
        quality = chance.normal(0, 0.5, len(author))
        return created, author, topic, media, embedding, quality


def _traits(
    chance: np.random.Generator, rows: int, columns: int, traits: int, weight: float, noise: float
) -> Floats:
    """How much each row likes each column: by hidden traits of both, and some noise."""
    by_traits = chance.normal(size=(rows, traits)) @ chance.normal(size=(traits, columns))
    own = noise * chance.normal(size=(rows, columns))
    return np.asarray(weight * by_traits / np.sqrt(traits) + own)


def _own_topics(chance: np.random.Generator, authors: int) -> Ints:
    """Three topics an author, shape (authors, 3)."""
    return np.argsort(chance.random((authors, len(TOPICS))), axis=1)[:, :3]


def _heavy(chance: np.random.Generator, count: int, sigma: float) -> Floats:
    """Numbers of mean 1, a few of them much greater."""
    return chance.lognormal(-(sigma**2) / 2, sigma, count)


def _units(rows: Floats) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
