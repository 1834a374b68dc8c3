"""Each rule of a trace: what keeps it says nothing, what breaks it is named exactly."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.trace_rules import violations
from mesh.otlp import Event, Kind, Span

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
METHOD = "feed.v1.FilterService/ListSeen"
MS = 1_000_000
START = 1_700_000_000_000 * MS


def span(
    number: int,
    parent: int | str | None,
    name: str,
    kind: Kind = "INTERNAL",
    service: str = "gateway",
    attributes: dict[str, Any] | None = None,
    **more: Any,
) -> Span:
    """One of ours, a millisecond after the one before it."""
    fields: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": f"{number:016x}",
        "parent_id": parent if isinstance(parent, str) else f"{parent:016x}" if parent else "",
        "start_ns": START + number * MS,
        "end_ns": START + (100 - number) * MS,
        "status": "UNSET",
        "status_message": "",
        "events": (),
        "links": (),
        "resource": {"service.name": service, "service.namespace": "feedmesh"},
        "scope": "feedmesh",
        "trace_state": "",
        **more,
    }
    return Span(name=name, kind=kind, service=service, attributes=attributes or {}, **fields)


HTTP = {
    "http.request.method": "GET",
    "url.scheme": "http",
    "url.path": "/feed",
    "http.route": "/feed",
    "http.response.status_code": 200,
}
RPC = {"rpc.system.name": "grpc", "rpc.method": METHOD, "rpc.response.status_code": "OK"}
SQL = {"db.system.name": "sqlite"}
MESSAGING = {"messaging.system": "redis", "messaging.destination.name": "feed.posts.v1"}
SEND = {**MESSAGING, "messaging.operation.type": "send"}
PROCESS = {**MESSAGING, "messaging.operation.type": "process"}

ROOT, CLIENT, SERVER, QUERY, SENDING, PROCESSING = GOOD = (
    span(1, None, "GET /feed", "SERVER", "gateway", HTTP),
    span(2, 1, METHOD, "CLIENT", "gateway", {**RPC, "server.address": "127.0.0.1"}),
    span(3, 2, METHOD, "SERVER", "filter_svc", RPC),
    span(4, 3, "SELECT impressions", "CLIENT", "filter_svc", SQL),
    span(5, 1, "send feed.posts.v1", "PRODUCER", "workers", SEND),
    span(6, 5, "process feed.posts.v1", "CONSUMER", "workers", PROCESS),
)


def broken(*spans: Span, outside: frozenset[str] = frozenset()) -> list[str]:
    """What is wrong, without where; each line must say where."""
    found = violations(spans, outside)
    for line in found:
        assert line.startswith(f"trace {TRACE}, span ")
    return [line.partition("): ")[2] for line in found]


def changed(victim: Span, **fields: Any) -> list[str]:
    """What is wrong when one span of the good trace is another."""
    return broken(*(replace(each, **fields) if each is victim else each for each in GOOD))


def with_attributes(victim: Span, **attributes: Any) -> dict[str, Any]:
    """The span's attributes with these, whose dots are __; None takes one away."""
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    together = {**victim.attributes, **named}
    return {name: value for name, value in together.items() if value is not None}


def test_a_good_trace_breaks_nothing() -> None:
    assert broken(*GOOD) == []
    assert broken() == []


@given(st.permutations(GOOD))
def test_the_order_of_spans_does_not_matter(spans: list[Span]) -> None:
    assert violations(spans) == []


@given(st.sampled_from(GOOD))
def test_a_trace_without_one_of_its_inner_spans_has_orphans_or_a_lost_call(lost: Span) -> None:
    left = [each for each in GOOD if each is not lost]
    children = [each for each in left if each.parent_id == lost.span_id]
    found = violations(left)
    orphans = [line for line in found if "that is not in the trace" in line]
    assert [line.partition("span ")[2][:16] for line in orphans] == [c.span_id for c in children]
    if lost is SERVER:
        assert any("0 SERVER spans below it" in line for line in found)
    if not children:
        assert found == []


def test_a_violation_names_the_trace_the_span_and_the_rule() -> None:
    [line] = violations([replace(ROOT, status="OK")])
    assert line == (
        f"trace {TRACE}, span 0000000000000001 (gateway SERVER GET /feed): has the status OK"
    )


def test_traces_are_judged_apart() -> None:
    other = [replace(each, trace_id="ab" * 16) for each in GOOD]
    assert violations([*GOOD, *other]) == []


# -- the tree ------------------------------------------------------------------------------------


def test_a_trace_has_one_root() -> None:
    assert broken(*GOOD, span(7, None, "stray")) == ["is one of 2 roots"] * 2


def test_a_trace_that_was_begun_outside_has_no_root_of_ours() -> None:
    outside = frozenset({"00f067aa0ba902b7"})
    joined = replace(ROOT, parent_id="00f067aa0ba902b7")
    assert broken(joined, *GOOD[1:], outside=outside) == []
    assert broken(joined, *GOOD[1:]) == ["has a parent, 00f067aa0ba902b7, that is not in the trace"]
    assert broken(joined, *GOOD[1:], span(7, None, "stray"), outside=outside) == [
        "is a root, but the trace was begun outside"
    ]


def test_a_parent_is_in_the_trace() -> None:
    assert "has a parent, 00000000000000ff, that is not in the trace" in changed(
        QUERY, parent_id="00000000000000ff"
    )


def test_ids_are_unique() -> None:
    twin = replace(QUERY, name="SELECT posts")
    assert broken(*GOOD, twin) == ["has the id of another span, SELECT posts"]


def test_no_span_is_below_itself() -> None:
    one, two = span(7, 8, "one"), span(8, 7, "two", start_ns=START + 7 * MS)
    assert broken(*GOOD, one, two) == ["is below itself"] * 2
    assert broken(*GOOD, span(9, 9, "own child")) == ["is below itself"]
    # What hangs below a circle is no part of it.
    assert broken(*GOOD, one, two, span(10, 8, "below")) == ["is below itself"] * 2


def test_a_span_ends_and_not_before_its_start() -> None:
    assert changed(QUERY, end_ns=0) == ["has no end"]
    assert changed(QUERY, end_ns=QUERY.start_ns) == []
    assert changed(QUERY, end_ns=QUERY.start_ns - 2 * MS) == ["ends 2.000 ms before it starts"]
    assert "has no start" in changed(ROOT, start_ns=0)


@given(st.integers(-20 * MS, 20 * MS))
def test_a_child_starts_no_earlier_than_its_parent_but_for_the_clocks(shift: int) -> None:
    found = changed(QUERY, start_ns=SERVER.start_ns + shift)
    assert bool(found) == (shift < -5 * MS)
    assert all("before its parent" in line for line in found)


# -- how spans of several processes hang together ------------------------------------------------


def test_a_served_call_hangs_below_the_same_call_of_another_service() -> None:
    other = with_attributes(CLIENT, rpc__method="feed.v1.FilterService/FilterCandidates")
    wrong = f"has no CLIENT span of {METHOD} for parent, but CLIENT {METHOD}"
    assert wrong in changed(CLIENT, attributes=other)
    assert f"has no CLIENT span of {METHOD} for parent, but SERVER GET /feed" in changed(
        SERVER, parent_id=ROOT.span_id
    )
    assert changed(SERVER, service="gateway") == ["is called by its own service, gateway"]


def test_a_call_from_outside_needs_no_span_of_its_caller() -> None:
    """grpcurl has none; another team's client has its own."""
    assert broken(replace(SERVER, parent_id="")) == []
    theirs = replace(SERVER, parent_id="00f067aa0ba902b7")
    assert broken(theirs, outside=frozenset({"00f067aa0ba902b7"})) == []


def test_a_call_that_was_answered_was_served_once() -> None:
    rest = [each for each in GOOD if each not in (SERVER, QUERY)]
    assert broken(*rest) == ["was answered, and has 0 SERVER spans below it"]
    assert broken(*GOOD, replace(SERVER, span_id="0000000000000099")) == [
        "was answered, and has 2 SERVER spans below it"
    ]
    # A call that failed may not have come so far, and Triton need not be traced.
    failed = with_attributes(
        CLIENT, rpc__response__status_code="UNAVAILABLE", error__type="UNAVAILABLE"
    )
    assert broken(ROOT, replace(CLIENT, attributes=failed, status="ERROR")) == []
    triton = with_attributes(CLIENT, rpc__method="inference.GRPCInferenceService/ModelInfer")
    assert broken(ROOT, replace(CLIENT, attributes=triton)) == []


def test_processing_hangs_below_a_sending_or_links_to_sendings() -> None:
    alone = replace(PROCESSING, parent_id="")
    assert broken(alone) == ["has neither a PRODUCER for parent nor links"]
    assert broken(replace(alone, links=(("ab" * 16, "cd" * 8),))) == []
    assert changed(PROCESSING, parent_id=ROOT.span_id) == [
        "has no PRODUCER for parent, but SERVER GET /feed"
    ]


# -- attributes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("victim", "name"),
    [
        *((ROOT, name) for name in HTTP),
        *((CLIENT, name) for name in ("rpc.system.name", "rpc.response.status_code")),
        (CLIENT, "server.address"),
        *((SERVER, name) for name in ("rpc.system.name", "rpc.response.status_code")),
        *((SENDING, name) for name in SEND),
        *((PROCESSING, name) for name in PROCESS if name != "messaging.operation.type"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_what_a_span_of_its_kind_has_to_say(victim: Span, name: str) -> None:
    left = {key: value for key, value in victim.attributes.items() if key != name}
    assert f"has no {name}" in changed(victim, attributes=left)


def test_a_method_is_said_by_both_sides_of_a_call() -> None:
    for victim in (CLIENT, SERVER):
        attributes = with_attributes(victim, rpc__method=None)
        assert "has no rpc.method" in changed(victim, attributes=attributes)


def test_a_database_is_named_by_the_attribute_of_today() -> None:
    old = {"db.system": "redis", "db.statement": "GET ?"}
    assert changed(QUERY, attributes=old) == ["has no db.system.name"]


def test_a_request_that_met_no_route_needs_none() -> None:
    lost = with_attributes(ROOT, http__route=None, http__response__status_code=404)
    assert changed(ROOT, attributes=lost) == []


def test_a_request_whose_client_left_needs_no_status() -> None:
    gone = with_attributes(ROOT, http__response__status_code=None, error__type="ConnectionError")
    assert changed(ROOT, attributes=gone, status="ERROR") == []
    failed = with_attributes(ROOT, http__response__status_code=None, error__type="RuntimeError")
    assert changed(ROOT, attributes=failed, status="ERROR") == ["has no http.response.status_code"]


@pytest.mark.parametrize(
    "name",
    ["enduser.id", "http.request.header.authorization", "db.query.parameter.0", "client.address"],
)
def test_what_tells_on_people_or_lets_in_is_forbidden(name: str) -> None:
    told = {**QUERY.attributes, name: "x"}
    assert changed(QUERY, attributes=told) == [f"the span has the attribute {name}"]
    assert changed(QUERY, resource={**QUERY.resource, name: "x"}) == [
        f"its resource has the attribute {name}"
    ]
    assert changed(QUERY, events=(Event("asked", START, {name: "x"}),)) == [
        f"its event asked has the attribute {name}"
    ]


def test_names_that_only_resemble_forbidden_ones_are_free() -> None:
    free = {**QUERY.attributes, "user.hash": "ab", "client.addressed": 1, "feed.tokens": 2}
    assert changed(QUERY, attributes=free) == []


def test_every_span_says_whose_it_is() -> None:
    assert "has no service.name" in changed(QUERY, service="")
    assert changed(QUERY, resource={"service.name": "filter_svc"}) == [
        "has the service.namespace None, not feedmesh"
    ]


def test_spans_of_others_have_a_place_in_the_tree_and_no_other_duty() -> None:
    triton = span(
        7, 4, "InferRequest", "SERVER", "triton-inference-server", {"db.system": "x"},
        resource={"service.name": "triton-inference-server"}, status="OK",
    )  # fmt: skip
    assert broken(*GOOD, triton) == []
    assert broken(*GOOD, replace(triton, parent_id="00000000000000ff")) == [
        "has a parent, 00000000000000ff, that is not in the trace"
    ]


# -- status --------------------------------------------------------------------------------------

CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
FAULTS = {
    "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
}  # fmt: skip


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("failed", [True, False])
def test_the_status_of_a_call_follows_its_code(code: str, failed: bool) -> None:
    for victim, is_error in ((CLIENT, code != "OK"), (SERVER, code in FAULTS)):
        attributes = with_attributes(
            victim, rpc__response__status_code=code, error__type=code if failed else None
        )
        status = "ERROR" if failed else "UNSET"
        found = changed(victim, attributes=attributes, status=status)
        wrong = f"has the status {status} for a {victim.kind} span of {code}"
        assert found == ([] if failed == is_error else [wrong])


@given(st.integers(200, 599), st.booleans())
def test_a_request_is_an_error_from_500_on(code: int, failed: bool) -> None:
    attributes = with_attributes(
        ROOT, http__response__status_code=code, error__type=str(code) if failed else None
    )
    found = changed(ROOT, attributes=attributes, status="ERROR" if failed else "UNSET")
    assert bool(found) == (failed != (code >= 500))


def test_error_type_is_on_errors_and_on_nothing_else() -> None:
    assert changed(QUERY, status="ERROR") == ["is an error without error.type"]
    typed = with_attributes(QUERY, error__type="Timeout")
    assert changed(QUERY, attributes=typed, status="ERROR", status_message="slow") == []
    assert changed(QUERY, attributes=typed) == ["has error.type Timeout with the status UNSET"]


def test_only_an_error_has_a_message() -> None:
    assert changed(QUERY, status_message="done") == ["has a status message with the status UNSET"]


def test_nobody_says_ok() -> None:
    assert changed(QUERY, status="OK") == ["has the status OK"]
