"""What holds of every trace of feedmesh, as rules that are checked on whole traces. Pure.

A rule takes a span and the trace it is in, and gives what the span breaks, in words. Spans of
services that are not ours, such as Triton's, only have to have a name and a place in the tree.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten

from mesh.otlp import Span

NAMESPACE = "feedmesh"
OUR_SERVICES = frozenset(
    {
        "gateway", "candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc", "workers",
        "vectors", "launcher", "feedmesh",
    }
)  # fmt: skip
# The clocks of two processes may differ by so much.
_SKEW_NS = 5_000_000
# The server is to blame for these, by the rpc conventions.
_SERVER_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
# What FastAPI's span says of a request whose client left before the answer began.
_UNANSWERED = frozenset({"ConnectionError", "CancelledError", "ClientDisconnect"})
# The packages of our own contracts.
_OUR_CALLS = ("feed.v1.", "edge.v1.")
# Names, or with a dot at the end what names begin with: they tell who somebody is, or let in.
_FORBIDDEN = (
    "enduser.", "user.name", "user.full_name", "user.email", "client.address",
    "http.request.header.authorization", "http.request.header.cookie",
    "http.response.header.set-cookie", "http.request.body", "http.response.body",
    "db.query.parameter.", "db.operation.parameter.", "feed.text", "feed.password", "feed.token",
)  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """The spans of one trace, also by their ids, and the ids of spans known to be elsewhere."""

    spans: Sequence[Span]
    by_id: Mapping[str, Span]
    outside: frozenset[str]

    def parent(self, span: Span) -> Span | None:
        """The span's parent, where it is in the trace."""
        return self.by_id.get(span.parent_id)

    def children(self, span: Span) -> list[Span]:
        """The spans right below it."""
        return [each for each in self.spans if each.parent_id == span.span_id]


Rule = Callable[[Span, Trace], Iterator[str]]


def violations(spans: Sequence[Span], outside: frozenset[str] = frozenset()) -> list[str]:
    """What is wrong with whole traces: a line for each rule that a span breaks.

    Args:
        spans: All spans of one trace or of several, in any order.
        outside: Ids of spans in processes that are not ours, such as a client's, which may be
            parents.
    """
    traces: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    return [line for each in traces.values() for line in _of_trace(each, outside)]


def _of_trace(spans: Sequence[Span], outside: frozenset[str]) -> Iterator[str]:
    trace = Trace(spans, {span.span_id: span for span in spans}, outside)
    for span in spans:
        for rule in RULES if is_ours(span) else RULES_FOR_ALL:
            for what in rule(span, trace):
                who = f"{span.service} {span.kind} {shorten(span.name, 60, placeholder=' …')}"
                yield f"trace {span.trace_id}, span {span.span_id} ({who}): {what}"


def is_ours(span: Span) -> bool:
    """Whether a process of feedmesh made the span."""
    return span.service in OUR_SERVICES or span.resource.get("service.namespace") == NAMESPACE


# -- the tree ------------------------------------------------------------------------------------


def one_root(span: Span, trace: Trace) -> Iterator[str]:
    """A trace has one root; one that was begun outside has none of ours."""
    if span.parent_id:
        return
    roots = sum(not each.parent_id for each in trace.spans)
    if roots > 1:
        yield f"is one of {roots} roots"
    elif any(each.parent_id in trace.outside for each in trace.spans):
        yield "is a root, but the trace was begun outside"


def no_orphan(span: Span, trace: Trace) -> Iterator[str]:
    """A parent is in the trace, or known to be outside."""
    known = span.parent_id in trace.by_id or span.parent_id in trace.outside
    if span.parent_id and not known:
        yield f"has a parent, {span.parent_id}, that is not in the trace"


def unique_id(span: Span, trace: Trace) -> Iterator[str]:
    """No two spans have one id."""
    if trace.by_id[span.span_id] is not span:
        yield f"has the id of another span, {trace.by_id[span.span_id].name}"


def no_circle(span: Span, trace: Trace) -> Iterator[str]:
    """No span is below itself."""
    above, seen = trace.parent(span), set[str]()
    while above is not None and above.span_id not in seen:
        if above.span_id == span.span_id:
            yield "is below itself"
            return
        seen.add(above.span_id)
        above = trace.parent(above)


def ends_after_start(span: Span, trace: Trace) -> Iterator[str]:
    """Every span ends, and not before it started."""
    if not span.start_ns:
        yield "has no start"
    if not span.end_ns:
        yield "has no end"
    elif span.end_ns < span.start_ns:
        yield f"ends {_ms(span.start_ns - span.end_ns)} before it starts"


def starts_after_parent(span: Span, trace: Trace) -> Iterator[str]:
    """A child starts no earlier than its parent."""
    parent = trace.parent(span)
    if parent is not None and span.start_ns < parent.start_ns - _SKEW_NS:
        yield f"starts {_ms(parent.start_ns - span.start_ns)} before its parent, {parent.name}"


# -- how spans of several processes hang together ------------------------------------------------


def rpc_server_has_client(span: Span, trace: Trace) -> Iterator[str]:
    """What serves a call hangs below that call, which another service makes.

    It may be a root: grpcurl and a probe have no spans.
    """
    parent = trace.parent(span)
    if not is_rpc(span) or span.kind != "SERVER" or parent is None:
        return
    method = span.attributes.get("rpc.method")
    if parent.kind != "CLIENT" or parent.attributes.get("rpc.method") != method:
        yield f"has no CLIENT span of {method} for parent, but {parent.kind} {parent.name}"
    elif parent.service == span.service:
        yield f"is called by its own service, {span.service}"


def rpc_client_has_server(span: Span, trace: Trace) -> Iterator[str]:
    """A call of ours that was answered was served in the same trace, once."""
    method = str(span.attributes.get("rpc.method", ""))
    answered = span.attributes.get("rpc.response.status_code") == "OK"
    if span.kind == "CLIENT" and method.startswith(_OUR_CALLS) and answered:
        served = [each for each in trace.children(span) if each.kind == "SERVER"]
        if len(served) != 1:
            yield f"was answered, and has {len(served)} SERVER spans below it"


def processing_has_origin(span: Span, trace: Trace) -> Iterator[str]:
    """What processes messages hangs below the sending of one, or links to the sendings."""
    if span.kind != "CONSUMER" or span.attributes.get("messaging.operation.type") != "process":
        return
    parent = trace.parent(span)
    if parent is not None and parent.kind != "PRODUCER":
        yield f"has no PRODUCER for parent, but {parent.kind} {parent.name}"
    if parent is None and not span.links and span.parent_id not in trace.outside:
        yield "has neither a PRODUCER for parent nor links"


# -- attributes ----------------------------------------------------------------------------------


def is_rpc(span: Span) -> bool:
    """Whether the span is one side of a call."""
    return span.kind in ("CLIENT", "SERVER") and _has(span, "rpc.")


def is_http_server(span: Span) -> bool:
    """Whether the span is a request that was answered."""
    return span.kind == "SERVER" and _has(span, "http.")


def rpc_attributes(span: Span, trace: Trace) -> Iterator[str]:
    """A call says what was called, of whom, and how it ended."""
    if is_rpc(span):
        required = ["rpc.system.name", "rpc.method", "rpc.response.status_code"]
        yield from _missing(span, *required, *(["server.address"] * (span.kind == "CLIENT")))


def http_attributes(span: Span, trace: Trace) -> Iterator[str]:
    """A request says what was asked for, and how it ended unless its client left before."""
    if not is_http_server(span):
        return
    yield from _missing(span, "http.request.method", "url.scheme", "url.path")
    status = span.attributes.get("http.response.status_code")
    if status is None:
        if span.attributes.get("error.type") not in _UNANSWERED:
            yield "has no http.response.status_code"
    elif int(status) < 400:
        # A request that was refused may have met no route.
        yield from _missing(span, "http.route")


def db_attributes(span: Span, trace: Trace) -> Iterator[str]:
    """What asks a database says which kind it is."""
    if span.kind == "CLIENT" and _has(span, "db."):
        yield from _missing(span, "db.system.name")


def messaging_attributes(span: Span, trace: Trace) -> Iterator[str]:
    """What sends or processes messages says which, where, and in which system."""
    if span.kind in ("PRODUCER", "CONSUMER"):
        yield from _missing(
            span, "messaging.system", "messaging.destination.name", "messaging.operation.type"
        )


def nothing_forbidden(span: Span, trace: Trace) -> Iterator[str]:
    """No attribute has a name under which people or secrets stand."""
    for holder, attributes in (
        ("the span", span.attributes),
        ("its resource", span.resource),
        *((f"its event {event.name}", event.attributes) for event in span.events),
    ):
        for name in attributes:
            if name in _FORBIDDEN or name.startswith(tuple(f for f in _FORBIDDEN if f[-1] == ".")):
                yield f"{holder} has the attribute {name}"


def has_service(span: Span, trace: Trace) -> Iterator[str]:
    """Each span says whose it is; one of ours also that it is ours."""
    if not span.service:
        yield "has no service.name"
    namespace = span.resource.get("service.namespace")
    if is_ours(span) and namespace != NAMESPACE:
        yield f"has the service.namespace {namespace}, not {NAMESPACE}"


# -- status --------------------------------------------------------------------------------------


def rpc_status(span: Span, trace: Trace) -> Iterator[str]:
    """A caller's span is an error for any code but OK, a callee's for what is its own fault."""
    code = span.attributes.get("rpc.response.status_code")
    if is_rpc(span) and code is not None:
        wrong = code != "OK" if span.kind == "CLIENT" else code in _SERVER_FAULTS
        yield from _error_iff(span, wrong, f"{span.kind} span of {code}")


def http_status(span: Span, trace: Trace) -> Iterator[str]:
    """A request is an error when it was answered with 500 or above."""
    status = span.attributes.get("http.response.status_code")
    if is_http_server(span) and status is not None:
        yield from _error_iff(span, int(status) >= 500, f"response of {status}")


def error_type_iff_error(span: Span, trace: Trace) -> Iterator[str]:
    """`error.type` stands on errors, on all of them, and on nothing else."""
    if span.status == "ERROR" and not span.attributes.get("error.type"):
        yield "is an error without error.type"
    if span.status != "ERROR" and "error.type" in span.attributes:
        yield f"has error.type {span.attributes['error.type']} with the status {span.status}"


def message_only_with_error(span: Span, trace: Trace) -> Iterator[str]:
    """Only an error's status has a message."""
    if span.status != "ERROR" and span.status_message:
        yield f"has a status message with the status {span.status}"


def never_ok(span: Span, trace: Trace) -> Iterator[str]:
    """The status OK is an operator's to set."""
    if span.status == "OK":
        yield "has the status OK"


RULES_FOR_ALL: tuple[Rule, ...] = (
    one_root, no_orphan, unique_id, no_circle, ends_after_start, starts_after_parent, has_service,
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    *RULES_FOR_ALL, rpc_server_has_client, rpc_client_has_server, processing_has_origin,
    rpc_attributes, http_attributes, db_attributes, messaging_attributes, nothing_forbidden,
    rpc_status, http_status, error_type_iff_error, message_only_with_error, never_ok,
)  # fmt: skip


def _has(span: Span, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in span.attributes)


def _missing(span: Span, *required: str) -> Iterator[str]:
    for name in required:
        if span.attributes.get(name) in (None, ""):
            yield f"has no {name}"


def _error_iff(span: Span, is_error: bool, what: str) -> Iterator[str]:
    if is_error != (span.status == "ERROR"):
        yield f"has the status {span.status} for a {what}"


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.3f} ms"
