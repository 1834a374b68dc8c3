"""A trace as the terminal shows it."""

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from cli.trace_tree import draw, milliseconds, tree
from mesh.otlp import Span
from tests.cli.test_trace_rules import GOOD, MS, START, TRACE, span

FEED = span(
    1, None, "GET /feed", "SERVER",
    attributes={"feed.id": "f" * 32, "feed.items": 20, "feed.items.social": 14,
                "feed.items.discovery": 6, "feed.degraded": ("features", "model"),
                "http.response.status_code": 200, "url.path": "/feed"},
)  # fmt: skip
STAGE = span(
    2, 1, "stage ranker",
    attributes={"feed.stage.name": "ranker", "feed.stage.outcome": "stand_in",
                "feed.stage.deadline_used": 0.123456, "error.type": "UNAVAILABLE"},
    status="ERROR", status_message="the ranker is away",
)  # fmt: skip
CALL = span(
    3, 2, "feed.v1.RankerService/RankCandidates", "CLIENT",
    attributes={"rpc.response.status_code": "OK"},
)  # fmt: skip
SERVED = span(
    4, 3, "feed.v1.RankerService/RankCandidates", "SERVER", "ranker_svc",
    attributes={"rpc.response.status_code": "OK", "feed.features.hits": 150},
)  # fmt: skip
SAVED = span(50, 1, "SET", "CLIENT", attributes={"db.system.name": "redis"})
TRACE_OF_A_FEED = (FEED, STAGE, CALL, SERVED, SAVED)


def drawn(*spans: Span, width: int = 140) -> list[str]:
    return [line.plain for line in draw(spans, width)]


def named(lines: list[str], name: str) -> str:
    [line] = [line for line in lines if line.lstrip("│├└ ").startswith(name + " ")]
    return line


def test_a_trace_is_a_tree_in_time_a_line_a_span() -> None:
    bar = "━" * 20
    assert drawn(*reversed(TRACE_OF_A_FEED)) == [
        f"trace {TRACE}  98.0 ms  5 spans  2023-11-14 22:13:20.001 UTC  1 with errors",
        f"GET /feed                                   gateway     98.0 ms  {bar}  200",
        f"│   id={'f' * 32} items=20 degraded=features,model  items: social=14 discovery=6",
        f"├ stage ranker                              gateway     96.0 ms  {bar}  UNAVAILABLE",
        "│ │   the ranker is away  stage: outcome=stand_in deadline_used=0.1235",
        f"│ └ feed.v1.RankerService/RankCandidates    gateway     94.0 ms  {bar}  OK",
        f"│   └ feed.v1.RankerService/RankCandidates  ranker_svc  92.0 ms  {bar[1:]}   OK"
        "           features.hits=150",
        "└ SET                                       gateway     0.00 ms            ━",
    ]


@given(
    st.lists(st.tuples(st.integers(-1, 20), st.integers(0, 50)), min_size=1, max_size=21),
    st.sampled_from([100, 140]),
)
def test_every_span_is_shown_once_wherever_its_parent_is(
    shape: list[tuple[int, int]], width: int
) -> None:
    """Parents that are missing, later ones, and such as lead in a circle included."""
    spans = [
        replace(
            span(n + 1, parent + 1 if parent >= 0 else None, f"name{n}"),
            start_ns=START + start * MS,
            end_ns=START + (start + 3) * MS,
        )
        for n, (parent, start) in enumerate(shape)
    ]
    rows = list(tree(spans))
    assert sorted(row.span.name for row in rows) == sorted(each.name for each in spans)
    places = {row.span.span_id: place for place, row in enumerate(rows)}
    siblings: dict[str, int] = {}
    for row in rows:
        guide = row.guide.removesuffix("├ ").removesuffix("└ ")
        assert set(guide) <= set("│ ")
        if guide != row.guide:
            # Below its parent, and after the siblings that started before it.
            assert places[row.span.parent_id] < places[row.span.span_id]
            assert siblings.get(row.span.parent_id, 0) <= row.span.start_ns
            siblings[row.span.parent_id] = row.span.start_ns
    text = "\n".join(drawn(*spans, width=width))
    for each in spans:
        assert text.count(f"{each.name} ") == 1


@pytest.mark.parametrize("width", [100, 140])
def test_lines_fit_and_words_are_whole(width: int) -> None:
    lines = drawn(*TRACE_OF_A_FEED, *(replace(s, trace_id=TRACE) for s in GOOD), width=width)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for word in (f"id={'f' * 32}", "degraded=features,model", "deadline_used=0.1235", "hits=150"):
        assert any(word in each for each in words)
    assert all(line == line.rstrip() for line in lines)


def test_bars_stand_where_their_spans_are_in_time() -> None:
    first = span(1, None, "all", start_ns=START, end_ns=START + 100 * MS)
    late = span(2, 1, "late", start_ns=START + 75 * MS, end_ns=START + 100 * MS)
    brief = span(3, 1, "brief", start_ns=START + 100 * MS, end_ns=START + 100 * MS)
    lines = drawn(first, late, brief)
    whole, quarter, mark = (named(lines, name) for name in ("all", "late", "brief"))
    width = whole.count("━")
    assert quarter.count("━") == pytest.approx(width / 4, abs=1)
    assert mark.count("━") == 1
    assert len(whole) == len(quarter) == len(mark)


def test_a_failed_span_is_red_and_says_how() -> None:
    [line] = [line for line in draw(TRACE_OF_A_FEED, 140) if "stage ranker" in line.plain]
    red = {line.plain[s.start : s.end].strip() for s in line.spans if "red" in str(s.style)}
    assert {"stage ranker", "UNAVAILABLE"} <= red
    quiet = [line for line in draw([FEED, SAVED], 140) if _is_red(line)]
    assert quiet == []


def _is_red(line: Text) -> bool:
    return any("red" in str(each.style) for each in line.spans)


def test_each_service_has_a_colour_of_its_own() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=140)
    for line in draw(TRACE_OF_A_FEED, 140):
        console.print(line)
    assert "\x1b[36mgateway" in out.getvalue()
    assert "\x1b[32mranker_svc" in out.getvalue()


def test_links_lead_to_other_traces_by_their_id_and_to_spans_here_by_name() -> None:
    other = "ab" * 16
    linked = span(
        7, None, "process feed.posts.v1", "CONSUMER", "workers",
        {"messaging.consumer.group.name": "fanout"},
        links=((other, "cd" * 8), (TRACE, FEED.span_id)),
    )  # fmt: skip
    lines = "\n".join(drawn(FEED, linked))
    assert f"group=fanout  → trace {other}  → GET /feed" in lines


def test_a_parent_that_is_elsewhere_is_told() -> None:
    joined = replace(FEED, parent_id="00f067aa0ba902b7")
    assert "(parent 00f067aa0ba902b7 is not here)" in "\n".join(drawn(joined))


def test_a_name_that_is_very_long_is_shortened_between_words() -> None:
    long = span(1, None, " ".join(["HMGET"] * 150))
    line = drawn(long)[1]
    assert line.startswith("HMGET HMGET HMGET HMGET HMGET HMGET HMGET …  gateway")


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0.00 ms"),
        (561_000, "0.56 ms"),
        (9_994_000, "9.99 ms"),
        (9_996_000, "10.0 ms"),
        (40_601_050, "40.6 ms"),
        (99_960_000, "100 ms"),
        (734_106_901, "734 ms"),
        (12_345_678_901, "12,346 ms"),
    ],
)
def test_durations_have_three_digits_or_so(nanoseconds: int, text: str) -> None:
    assert milliseconds(nanoseconds) == text
