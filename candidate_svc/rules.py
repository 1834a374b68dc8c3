"""How retrieved posts become candidates: pure rules over plain values."""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from feed.v1.common_pb2 import CandidateSource


@dataclass(frozen=True, slots=True)
class Candidate:
    """One retrieved post. `score` is what its source ordered by."""

    post_id: int
    author_id: int
    source: CandidateSource.ValueType
    score: float


def rank_score(rank: int) -> float:
    """The score of a source that orders without one: 1 for its first, falling with the rank."""
    return 1.0 / (1 + rank)


def newest(lists: Iterable[Iterable[int]], limit: int) -> list[int]:
    """The newest of all ids, once each, newest first: snowflakes order by time."""
    return sorted(set().union(*lists), reverse=True)[:limit]


def ranked(
    post_ids: Iterable[int], authors: Mapping[int, int], source: CandidateSource.ValueType
) -> list[Candidate]:
    """Candidates in the order given; author 0 where `authors` does not know the post."""
    return [
        Candidate(post_id, authors.get(post_id, 0), source, rank_score(rank))
        for rank, post_id in enumerate(post_ids)
    ]


def from_strangers(
    post_ids: Iterable[int],
    authors: Mapping[int, int],
    *,
    excluded: Collection[int],
    oldest_id: int,
) -> list[int]:
    """Those that exist, are not older than `oldest_id`, and whose author is not excluded."""
    return [
        post_id
        for post_id in post_ids
        if post_id >= oldest_id and post_id in authors and authors[post_id] not in excluded
    ]


def exploration_slots(limit: int, share: float) -> int:
    """How many of `limit` candidates go to posts that have yet to prove themselves."""
    return round(limit * share)


def with_exploration(
    found: Sequence[Candidate], drawable: Sequence[Candidate], slots: int, limit: int
) -> list[Candidate]:
    """The best found, followed by at most `slots` drawn ones that were not found.

    `limit` is kept by cutting the found; slots that stay empty are theirs.

    Args:
        found: Best first.
        drawable: In the order they were drawn.
        slots: How many of the drawn may enter.
        limit: The greatest number of candidates.
    """
    known = {each.post_id for each in found}
    drawn = [each for each in drawable if each.post_id not in known][:slots]
    return [*found[: limit - len(drawn)], *drawn]


def shuffled(post_ids: Sequence[int], chance: random.Random) -> list[int]:
    """The ids in an order by chance."""
    return chance.sample(post_ids, len(post_ids))
