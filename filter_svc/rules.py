"""Which candidates may be shown, and why not: pure rules over plain values.

Each rule looks at the candidates that the rules before it have left, and names those it removes.
`RULES` is the order, so a candidate's verdict is the first rule that removes it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from feed.v1.common_pb2 import (
    CANDIDATE_SOURCE_DISCOVERY,
    CANDIDATE_SOURCE_EXPLORATION,
    CANDIDATE_SOURCE_POPULAR,
    CANDIDATE_SOURCE_SOCIAL,
    CandidateSource,
)
from feed.v1.filter_pb2 import (
    VERDICT_BLOCKED,
    VERDICT_DELETED,
    VERDICT_DUPLICATE,
    VERDICT_KEPT,
    VERDICT_NOT_FOLLOWED,
    VERDICT_OVER_LIMIT,
    VERDICT_OWN,
    VERDICT_PENALIZED,
    VERDICT_SEEN,
    Verdict,
)

from stores.impressions.port import Seen

_MS_PER_HOUR = 3_600_000
# Hours after which a showing weighs half as much.
_PENALTY_HALVES_H = 6.0
# Of one post from several sources, the first of these stays; others come after.
_SOURCE_ORDER: dict[CandidateSource.ValueType, int] = {
    CANDIDATE_SOURCE_SOCIAL: 0,
    CANDIDATE_SOURCE_DISCOVERY: 1,
    CANDIDATE_SOURCE_EXPLORATION: 2,
    CANDIDATE_SOURCE_POPULAR: 3,
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate. `index` is its place in the request, best first within its source."""

    index: int
    post_id: int
    author_id: int
    source: CandidateSource.ValueType


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules judge by.

    Args:
        reader_id: Whose feed it is.
        following: Authors the reader follows.
        blocked: Authors blocked by the reader, and authors who blocked the reader.
        seen: What the reader saw lately, by post id.
        now_ms: Milliseconds since the epoch.
        page_size: Seen posts come back when fewer than this many unseen are left.
        max_kept: At most this many candidates are kept.
    """

    reader_id: int
    following: frozenset[int]
    blocked: frozenset[int]
    seen: Mapping[int, Seen]
    now_ms: int
    page_size: int
    max_kept: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """The fate of one candidate. `penalty` is above 0 for a PENALIZED one only."""

    verdict: Verdict.ValueType
    penalty: float = 0.0


Rule = Callable[[Sequence[Candidate], Facts], Iterable[Candidate]]


def deleted(candidates: Sequence[Candidate], _: Facts) -> Iterable[Candidate]:
    """The post is gone: it has no author any more."""
    return (each for each in candidates if each.author_id == 0)


def own(candidates: Sequence[Candidate], facts: Facts) -> Iterable[Candidate]:
    """Nobody is shown their own posts."""
    return (each for each in candidates if each.author_id == facts.reader_id)


def blocked(candidates: Sequence[Candidate], facts: Facts) -> Iterable[Candidate]:
    """A block, whoever set it, hides the author."""
    return (each for each in candidates if each.author_id in facts.blocked)


def not_followed(candidates: Sequence[Candidate], facts: Facts) -> Iterable[Candidate]:
    """Mailboxes are cleaned up a moment after an unfollow; the feed is right at once."""
    return (
        each
        for each in candidates
        if each.source == CANDIDATE_SOURCE_SOCIAL and each.author_id not in facts.following
    )


def duplicate(candidates: Sequence[Candidate], _: Facts) -> Iterable[Candidate]:
    """One post from several sources stays once, as what the reader would call it first."""
    kept: set[int] = set()
    for each in sorted(candidates, key=_source_order):
        if each.post_id in kept:
            yield each
        kept.add(each.post_id)


def seen(candidates: Sequence[Candidate], facts: Facts) -> Iterable[Candidate]:
    """Seen posts stay away, except the least penalised ones that are needed to fill a page."""
    known = [each for each in candidates if each.post_id in facts.seen]
    missing = max(facts.page_size - (len(candidates) - len(known)), 0)
    known.sort(key=lambda each: penalty(facts.seen[each.post_id], facts.now_ms))
    return known[missing:]


def over_limit(candidates: Sequence[Candidate], facts: Facts) -> Iterable[Candidate]:
    """Keeps the best of each source in turn; seen posts give way first."""
    rank_in_source: dict[int, int] = {}
    places: list[tuple[bool, int, int, int]] = []
    for place, each in enumerate(candidates):
        rank = rank_in_source.get(each.source, 0)
        rank_in_source[each.source] = rank + 1
        places.append((each.post_id in facts.seen, rank, _source_order(each), place))
    return (candidates[place] for *_, place in sorted(places)[facts.max_kept :])


RULES: tuple[tuple[Verdict.ValueType, Rule], ...] = (
    (VERDICT_DELETED, deleted),
    (VERDICT_OWN, own),
    (VERDICT_BLOCKED, blocked),
    (VERDICT_NOT_FOLLOWED, not_followed),
    (VERDICT_DUPLICATE, duplicate),
    (VERDICT_SEEN, seen),
    (VERDICT_OVER_LIMIT, over_limit),
)


def judge(candidates: Sequence[Candidate], facts: Facts) -> list[Judgement]:
    """The fate of every candidate, in their order. `candidates[i].index` must be i."""
    fates = [Judgement(VERDICT_KEPT)] * len(candidates)
    left = list(candidates)
    for verdict, rule in RULES:
        removed = {each.index for each in rule(left, facts)}
        for index in removed:
            fates[index] = Judgement(verdict)
        left = [each for each in left if each.index not in removed]
    for each in left:
        if each.post_id in facts.seen:
            again = penalty(facts.seen[each.post_id], facts.now_ms)
            fates[each.index] = Judgement(VERDICT_PENALIZED, again)
    return fates


def penalty(seen_post: Seen, now_ms: int) -> float:
    """What is subtracted from a seen post's score, above 0 and up to 1.

    (1 - 2^-count) / (1 + hours since the last showing / 6): half for a post shown once just now,
    near to 1 for one shown often, and half of that six hours later.
    """
    hours = max(now_ms - seen_post.last_seen_ms, 0) / _MS_PER_HOUR
    return (1 - 0.5 ** max(seen_post.count, 1)) / (1 + hours / _PENALTY_HALVES_H)


def _source_order(candidate: Candidate) -> int:
    return _SOURCE_ORDER.get(candidate.source, len(_SOURCE_ORDER))
