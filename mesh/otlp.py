"""Finished spans as OTLP carries them: as plain values, and as OTLP's JSON."""

import base64
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf import json_format
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

Kind = Literal["INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
Status = Literal["UNSET", "OK", "ERROR"]
Attributes = Mapping[str, Any]

_KINDS: Mapping[int, Kind] = {
    trace_pb2.Span.SPAN_KIND_INTERNAL: "INTERNAL",
    trace_pb2.Span.SPAN_KIND_SERVER: "SERVER",
    trace_pb2.Span.SPAN_KIND_CLIENT: "CLIENT",
    trace_pb2.Span.SPAN_KIND_PRODUCER: "PRODUCER",
    trace_pb2.Span.SPAN_KIND_CONSUMER: "CONSUMER",
}
_STATUSES: Mapping[int, Status] = {
    trace_pb2.Status.STATUS_CODE_OK: "OK",
    trace_pb2.Status.STATUS_CODE_ERROR: "ERROR",
}
_IDS = ("traceId", "spanId", "parentSpanId")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at one moment of a span."""

    name: str
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span. Ids are lowercase hex, times are nanoseconds since the epoch.

    `parent_id` is empty for none; `links` are pairs of a trace's id and a span's.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: Kind
    service: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    status: Status
    status_message: str
    events: Sequence[Event]
    links: tuple[tuple[str, str], ...]
    resource: Attributes
    scope: str
    trace_state: str


def read(resource_spans: Iterable[ResourceSpans]) -> list[Span]:
    """The spans, in the order they have there."""
    return [
        _span(span, resource, scope_spans.scope.name)
        for each in resource_spans
        for resource in (_attributes(each.resource.attributes),)
        for scope_spans in each.scope_spans
        for span in scope_spans.spans
    ]


def tops(spans: Sequence[Span]) -> list[Span]:
    """Those whose parent is not among them, the earliest first: the root, if it is there."""
    known = {span.span_id for span in spans}
    return sorted(
        (span for span in spans if span.parent_id not in known), key=lambda span: span.start_ns
    )


def only(resource_spans: Iterable[ResourceSpans], trace_id: str) -> list[ResourceSpans]:
    """The spans of one trace, below the resources and scopes that they have there."""
    wanted = bytes.fromhex(trace_id)
    kept = []
    for each in resource_spans:
        copied = ResourceSpans(resource=each.resource, schema_url=each.schema_url)
        for scope_spans in each.scope_spans:
            spans = [span for span in scope_spans.spans if span.trace_id == wanted]
            if spans:
                copied.scope_spans.add(
                    scope=scope_spans.scope, schema_url=scope_spans.schema_url, spans=spans
                )
        if copied.scope_spans:
            kept.append(copied)
    return kept


def to_json(resource_spans: Iterable[ResourceSpans]) -> dict[str, Any]:
    """The spans as OTLP JSON: protobuf's, but ids are hex and enums are numbers."""
    written = json_format.MessageToDict(
        trace_pb2.TracesData(resource_spans=resource_spans), use_integers_for_enums=True
    )
    for holder in _holders_of_ids(written):
        for name in holder.keys() & _IDS:
            holder[name] = base64.b64decode(holder[name]).hex()
    return {"resourceSpans": [], **written}


def from_json(data: Mapping[str, Any]) -> list[ResourceSpans]:
    """The spans of OTLP JSON. Unknown fields are passed over; raises ValueError on other forms."""
    try:
        readable = copy.deepcopy(dict(data))
        for holder in _holders_of_ids(readable):
            for name in holder.keys() & _IDS:
                holder[name] = base64.b64encode(bytes.fromhex(holder[name])).decode()
        traces = json_format.ParseDict(readable, trace_pb2.TracesData(), ignore_unknown_fields=True)
    except (json_format.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"not OTLP JSON: {error}") from error
    return list(traces.resource_spans)


def _holders_of_ids(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every span and every link."""
    for resource_spans in data.get("resourceSpans", ()):
        for scope_spans in resource_spans.get("scopeSpans", ()):
            for span in scope_spans.get("spans", ()):
                yield span
                yield from span.get("links", ())


def _span(span: trace_pb2.Span, resource: Attributes, scope: str) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        # A kind that is not given may be taken for INTERNAL, says the protocol.
        kind=_KINDS.get(span.kind, "INTERNAL"),
        service=str(resource.get("service.name", "")),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        status=_STATUSES.get(span.status.code, "UNSET"),
        status_message=span.status.message,
        events=tuple(
            Event(event.name, event.time_unix_nano, _attributes(event.attributes))
            for event in span.events
        ),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        resource=resource,
        scope=scope,
        trace_state=span.trace_state,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return tuple(_value(each) for each in value.array_value.values)
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case scalar:
            return getattr(value, scalar)
