"""A feed for a reader, by the services' own rules: retrieval, filter, features, order."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from feed.v1.common_pb2 import (
    CANDIDATE_SOURCE_DISCOVERY,
    CANDIDATE_SOURCE_EXPLORATION,
    CANDIDATE_SOURCE_POPULAR,
    CANDIDATE_SOURCE_SOCIAL,
)
from feed.v1.filter_pb2 import VERDICT_KEPT, VERDICT_PENALIZED
from numpy.typing import NDArray

from candidate_svc import rules as retrieval
from candidate_svc.discovery import EXPLORATION_POOL
from filter_svc import rules as visibility
from hydrator_svc.rerank import Bounds, Exploration, Item, Placed, placing
from mesh.ids import first_id_at
from ranker_svc.features import Features, Known, Subject, build
from training.simulation.state import State
from training.simulation.world import MS_PER_DAY, MS_PER_HOUR, Ints, World

Scores = NDArray[np.float32]
PAGE_SIZE = 20
MAX_KEPT = 150
# Nobody looks further than three pages, so nobody places what comes after.
FURTHEST = 3 * PAGE_SIZE
_POPULAR_SPARE = 2
_KEPT = frozenset((VERDICT_KEPT, VERDICT_PENALIZED))
_STRANGERS = frozenset(
    (CANDIDATE_SOURCE_DISCOVERY, CANDIDATE_SOURCE_POPULAR, CANDIDATE_SOURCE_EXPLORATION)
)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Settings of an installation that feeds depend on; these are their defaults."""

    social_limit: int = 100
    discovery_limit: int = 100
    discovery_days: int = 30
    exploration_share: float = 0.1
    share_min: float = 0.2
    share_max: float = 0.6
    seen_hours: int = 24
    epsilon: float = 0.05
    epsilon_pool: int = 10


@dataclass(frozen=True, slots=True)
class Ranked:
    """What a scorer may look at. Models look at the features alone.

    Args:
        features: As the ranker has them.
        reader: Number of the user.
        posts: Numbers of the posts, shape (n,).
        now_ms: When.
        chance: Of this feed.
    """

    features: Features
    reader: int
    posts: Ints
    now_ms: int
    chance: random.Random


@dataclass(frozen=True, slots=True)
class Policy:
    """How feeds are ordered.

    Args:
        version: In the log.
        score: Higher comes first; float32 (n,) in 0..1.
        mesh: Settings.
    """

    version: str
    score: Callable[[Ranked], Scores]
    mesh: Mesh = Mesh()


@dataclass(frozen=True, slots=True)
class Feed:
    """A feed, as far as anybody looks.

    Args:
        features: Of the candidates, in the order in which they were ranked.
        posts: Numbers of the candidates, in the same order.
        scores: Less penalties, in the same order.
        placed: Its first places.
    """

    features: Features
    posts: Ints
    scores: Scores
    placed: list[Placed]


def make(
    world: World, state: State, policy: Policy, reader: int, now_ms: int, chance: random.Random
) -> Feed:
    """The feed of a reader, at that time."""
    candidates = _candidates(world, state, policy.mesh, reader, now_ms, chance)
    kept, penalties = _judged(world, state, policy.mesh, reader, now_ms, candidates)
    posts = np.searchsorted(world.posts.ids, np.array([each.post_id for each in kept], np.int64))
    features = _features(world, state, reader, now_ms, kept, posts)
    scores = policy.score(Ranked(features, reader, posts, now_ms, chance)) - penalties
    items = [
        Item(index, each.author_id, each.source in _STRANGERS, score)
        for index, (each, score) in enumerate(zip(kept, scores.tolist(), strict=True))
    ]
    bounds = Bounds(PAGE_SIZE, policy.mesh.share_min, policy.mesh.share_max)
    exploration = Exploration(policy.mesh.epsilon, policy.mesh.epsilon_pool, chance)
    placed = list(islice(placing(items, bounds, exploration), FURTHEST))
    return Feed(features, posts, scores, placed)


def _candidates(
    world: World, state: State, mesh: Mesh, reader: int, now_ms: int, chance: random.Random
) -> list[retrieval.Candidate]:
    social = _social(world, state, mesh.social_limit, reader)
    if not mesh.discovery_limit:
        return social
    oldest_id = first_id_at(now_ms - mesh.discovery_days * MS_PER_DAY)
    excluded = {reader, *state.following[reader]}
    found = _found(world, state, mesh.discovery_limit, reader, excluded, oldest_id)
    slots = retrieval.exploration_slots(mesh.discovery_limit, mesh.exploration_share)
    pool = np.flatnonzero(state.unproven[: state.published])[: -EXPLORATION_POOL - 1 : -1]
    strangers, authors = _strangers(world, pool, excluded, oldest_id)
    drawn = retrieval.ranked(
        retrieval.shuffled(strangers, chance), authors, CANDIDATE_SOURCE_EXPLORATION
    )
    return [*social, *retrieval.with_exploration(found, drawn, slots, mesh.discovery_limit)]


def _social(world: World, state: State, limit: int, reader: int) -> list[retrieval.Candidate]:
    lists = [state.by_author[author][-limit:] for author in state.following[reader]]
    newest = retrieval.newest(lists, limit)
    authors = _authors(world, np.array(newest, np.int64))
    return retrieval.ranked(authors, authors, CANDIDATE_SOURCE_SOCIAL)


def _found(
    world: World, state: State, limit: int, reader: int, excluded: set[int], oldest_id: int
) -> list[retrieval.Candidate]:
    interest = state.users[reader].interest_vector
    if interest is None:
        hottest = _first(-state.hotness[: state.published], limit * _POPULAR_SPARE)
        strangers, authors = _strangers(world, hottest, excluded, oldest_id)
        return retrieval.ranked(strangers[:limit], authors, CANDIDATE_SOURCE_POPULAR)
    first = int(np.searchsorted(world.posts.ids, oldest_id))
    similar = world.posts.embedding[first : state.published] @ interest
    barred = np.zeros(world.size.users, bool)
    barred[list(excluded)] = True
    similar[barred[world.posts.author[first : state.published]]] = -np.inf
    nearest = _first(-similar, limit)
    nearest = nearest[np.isfinite(similar[nearest])]
    authors = _authors(world, first + nearest)
    return [
        retrieval.Candidate(post_id, author_id, CANDIDATE_SOURCE_DISCOVERY, score)
        for (post_id, author_id), score in zip(
            authors.items(), similar[nearest].tolist(), strict=True
        )
    ]


def _first(keys: NDArray[np.floating[Any]], limit: int) -> Ints:
    """Where the least keys are, in their order."""
    few = np.argpartition(keys, limit)[:limit] if len(keys) > limit else np.arange(len(keys))
    return few[np.argsort(keys[few], kind="stable")]


def _strangers(
    world: World, posts: Ints, excluded: set[int], oldest_id: int
) -> tuple[list[int], dict[int, int]]:
    authors = _authors(world, posts)
    excluded_ids = frozenset(world.user_ids[list(excluded)].tolist())
    return (
        retrieval.from_strangers(authors, authors, excluded=excluded_ids, oldest_id=oldest_id),
        authors,
    )


def _authors(world: World, posts: Ints) -> dict[int, int]:
    """Authors' ids by the posts' ids, in the order given."""
    ids = world.posts.ids[posts].tolist()
    return dict(zip(ids, world.user_ids[world.posts.author[posts]].tolist(), strict=True))


def _judged(
    world: World,
    state: State,
    mesh: Mesh,
    reader: int,
    now_ms: int,
    candidates: list[retrieval.Candidate],
) -> tuple[list[retrieval.Candidate], Scores]:
    """Those that may be shown, and their penalties."""
    facts = visibility.Facts(
        reader_id=int(world.user_ids[reader]),
        following=frozenset(world.user_ids[list(state.following[reader])].tolist()),
        blocked=frozenset(),
        seen=state.seen(reader, now_ms - mesh.seen_hours * MS_PER_HOUR),
        now_ms=now_ms,
        page_size=PAGE_SIZE,
        max_kept=MAX_KEPT,
    )
    fates = visibility.judge(
        [
            visibility.Candidate(index, each.post_id, each.author_id, each.source)
            for index, each in enumerate(candidates)
        ],
        facts,
    )
    kept = [
        (each, fate.penalty)
        for each, fate in zip(candidates, fates, strict=True)
        if fate.verdict in _KEPT
    ]
    return [each for each, _ in kept], np.array([penalty for _, penalty in kept], np.float32)


def _features(
    world: World,
    state: State,
    reader: int,
    now_ms: int,
    kept: list[retrieval.Candidate],
    posts: Ints,
) -> Features:
    user, affinities = state.users[reader], state.affinities[reader]
    author_ids = [each.author_id for each in kept]
    subject = Subject(
        reader_id=int(world.user_ids[reader]),
        interest=user.interest_vector,
        follower_count=user.follower_count,
        avg_engagement_rate=user.avg_engagement_rate,
        post_ids=[each.post_id for each in kept],
        author_ids=author_ids,
        sources=[each.source for each in kept],
    )
    known = Known(
        [state.posts[post] for post in posts.tolist()],
        [affinities.get(author_id, 0.0) for author_id in author_ids],
    )
    return build(subject, known, now_ms)
