"""The filter's rules: each one alone, and what holds whatever comes in."""

from collections import Counter
from dataclasses import replace

from feed.v1 import common_pb2 as c
from feed.v1 import filter_pb2 as f
from hypothesis import given
from hypothesis import strategies as st

from filter_svc.rules import Candidate, Facts, Judgement, judge, penalty
from filter_svc.seen import merge
from stores.impressions.port import Seen

SOCIAL = c.CANDIDATE_SOURCE_SOCIAL
DISCOVERY = c.CANDIDATE_SOURCE_DISCOVERY
EXPLORATION = c.CANDIDATE_SOURCE_EXPLORATION
POPULAR = c.CANDIDATE_SOURCE_POPULAR
HOUR_MS = 3_600_000
NOW_MS = 1_800_000_000_000
READER = 1
FACTS = Facts(
    reader_id=READER,
    following=frozenset({10, 11, 12}),
    blocked=frozenset({66}),
    seen={},
    now_ms=NOW_MS,
    page_size=0,
    max_kept=150,
)


def candidates(*rows: tuple[int, int, c.CandidateSource.ValueType]) -> list[Candidate]:
    return [Candidate(index, *row) for index, row in enumerate(rows)]


def verdicts(fates: list[Judgement]) -> list[str]:
    return [f.Verdict.Name(fate.verdict).removeprefix("VERDICT_") for fate in fates]


def seen_of(*rows: tuple[int, int, float]) -> dict[int, Seen]:
    """Rows of post id, count, and hours ago."""
    return {post: Seen(post, count, NOW_MS - int(ago * HOUR_MS)) for post, count, ago in rows}


def test_nothing_comes_of_nothing() -> None:
    assert judge([], FACTS) == []


def test_each_reason_to_remove_has_its_verdict() -> None:
    given_ = candidates(
        (1, 0, SOCIAL), (2, READER, SOCIAL), (3, 66, DISCOVERY), (4, 99, SOCIAL),
        (5, 10, SOCIAL), (5, 10, DISCOVERY), (6, 50, DISCOVERY), (7, 51, POPULAR),
    )  # fmt: skip
    facts = replace(FACTS, seen=seen_of((6, 1, 1)))
    assert verdicts(judge(given_, facts)) == [
        "DELETED", "OWN", "BLOCKED", "NOT_FOLLOWED", "KEPT", "DUPLICATE", "SEEN", "KEPT",
    ]  # fmt: skip


def test_the_first_rule_that_removes_a_candidate_names_the_reason() -> None:
    facts = replace(FACTS, blocked=frozenset({66}), seen=seen_of((1, 1, 1), (2, 1, 1)))
    given_ = candidates((1, 66, SOCIAL), (2, 0, SOCIAL))
    assert verdicts(judge(given_, facts)) == ["BLOCKED", "DELETED"]


def test_of_one_post_from_all_sources_the_social_one_stays() -> None:
    given_ = candidates(
        (1, 10, POPULAR), (1, 10, EXPLORATION), (1, 10, DISCOVERY), (1, 10, SOCIAL), (1, 10, SOCIAL)
    )
    assert verdicts(judge(given_, FACTS)) == [
        "DUPLICATE", "DUPLICATE", "DUPLICATE", "KEPT", "DUPLICATE",
    ]  # fmt: skip


def test_a_post_no_longer_followed_may_still_be_discovered() -> None:
    given_ = candidates((1, 99, SOCIAL), (1, 99, DISCOVERY))
    assert verdicts(judge(given_, FACTS)) == ["NOT_FOLLOWED", "KEPT"]


def test_seen_posts_fill_a_short_page_those_seen_longest_ago_first() -> None:
    facts = replace(FACTS, page_size=3, seen=seen_of((2, 1, 1), (3, 1, 20), (4, 1, 10)))
    given_ = candidates(*((post, 10, SOCIAL) for post in (1, 2, 3, 4)))
    fates = judge(given_, facts)
    assert verdicts(fates) == ["KEPT", "SEEN", "PENALIZED", "PENALIZED"]
    assert [fate.penalty > 0 for fate in fates] == [False, False, True, True]
    assert fates[2].penalty < fates[3].penalty


def test_of_posts_seen_at_one_time_the_one_seen_least_often_comes_back() -> None:
    facts = replace(FACTS, page_size=1, seen=seen_of((1, 5, 3), (2, 1, 3)))
    given_ = candidates((1, 10, SOCIAL), (2, 10, SOCIAL))
    assert verdicts(judge(given_, facts)) == ["SEEN", "PENALIZED"]


def test_seen_posts_stay_away_when_the_unseen_fill_the_page() -> None:
    facts = replace(FACTS, page_size=2, seen=seen_of((3, 1, 20)))
    given_ = candidates(*((post, 10, SOCIAL) for post in (1, 2, 3)))
    assert verdicts(judge(given_, facts)) == ["KEPT", "KEPT", "SEEN"]


def test_over_the_limit_the_best_of_each_source_stay() -> None:
    given_ = candidates(
        *((post, 10, SOCIAL) for post in (1, 2, 3, 4)),
        *((post, 50, DISCOVERY) for post in (5, 6, 7, 8)),
    )
    fates = judge(given_, replace(FACTS, max_kept=4))
    assert verdicts(fates) == [*["KEPT"] * 2, *["OVER_LIMIT"] * 2] * 2


def test_over_the_limit_seen_posts_give_way_first() -> None:
    facts = replace(FACTS, page_size=3, max_kept=2, seen=seen_of((1, 1, 1)))
    given_ = candidates((1, 10, SOCIAL), (2, 10, SOCIAL), (3, 10, SOCIAL))
    assert verdicts(judge(given_, facts)) == ["OVER_LIMIT", "KEPT", "KEPT"]


def test_merging_takes_the_greatest_of_each() -> None:
    long, short = [Seen(1, 3, 100), Seen(2, 1, 50)], [Seen(1, 1, 200), Seen(3, 1, 70)]
    assert merge(long, short) == [Seen(1, 3, 200), Seen(2, 1, 50), Seen(3, 1, 70)]


seens = st.builds(
    Seen,
    post_id=st.integers(1, 30),
    count=st.integers(0, 2**32 - 1),
    last_seen_ms=st.integers(0, NOW_MS + HOUR_MS),
)
some_candidates = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.sampled_from([0, READER, 66, 10, 11, 12, 50, 51, 52]),
        st.sampled_from([SOCIAL, DISCOVERY, EXPLORATION, POPULAR]),
    ),
    max_size=60,
).map(lambda rows: candidates(*rows))
some_facts = st.builds(
    lambda seen, page_size, max_kept: replace(
        FACTS, seen={each.post_id: each for each in seen}, page_size=page_size, max_kept=max_kept
    ),
    st.lists(seens),
    st.integers(0, 25),
    st.integers(1, 40),
)


@given(some_candidates, some_facts)
def test_whatever_comes_in_every_candidate_gets_one_right_verdict(
    given_: list[Candidate], facts: Facts
) -> None:
    fates = judge(given_, facts)
    assert len(fates) == len(given_)
    kept = [
        each
        for each, fate in zip(given_, fates, strict=True)
        if fate.verdict in (f.VERDICT_KEPT, f.VERDICT_PENALIZED)
    ]
    assert len(kept) <= facts.max_kept
    assert max(Counter(each.post_id for each in kept).values(), default=0) <= 1
    for each in kept:
        assert each.author_id not in {0, READER, *facts.blocked}
        assert each.source != SOCIAL or each.author_id in facts.following
    for each, fate in zip(given_, fates, strict=True):
        is_penalised = fate.verdict == f.VERDICT_PENALIZED
        assert (fate.penalty > 0) == is_penalised
        assert not is_penalised or each.post_id in facts.seen
        assert fate.verdict != f.VERDICT_KEPT or each.post_id not in facts.seen


@given(some_candidates, some_facts)
def test_seen_posts_come_back_exactly_as_far_as_a_page_needs_them(
    given_: list[Candidate], facts: Facts
) -> None:
    counts = Counter(fate.verdict for fate in judge(given_, replace(facts, max_kept=1000)))
    kept, back, away = (
        counts[verdict] for verdict in (f.VERDICT_KEPT, f.VERDICT_PENALIZED, f.VERDICT_SEEN)
    )
    assert back == min(max(facts.page_size - kept, 0), back + away)


@given(seens)
def test_a_penalty_is_above_0_and_at_most_1(seen: Seen) -> None:
    assert 0 < penalty(seen, NOW_MS) <= 1


@given(seens, st.integers(1, 40), st.integers(1, 100 * HOUR_MS))
def test_a_penalty_grows_with_count_and_with_recency(seen: Seen, more: int, later: int) -> None:
    once = replace(seen, count=1)
    assert penalty(replace(once, count=1 + more), NOW_MS) > penalty(once, NOW_MS)
    if seen.last_seen_ms + later <= NOW_MS:
        again = replace(seen, last_seen_ms=seen.last_seen_ms + later)
        assert penalty(again, NOW_MS) > penalty(seen, NOW_MS)
