"""Spans as OTLP carries them, and its JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from opentelemetry.sdk import resources
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, StatusCode

from mesh import otlp

scalars = st.one_of(
    st.builds(AnyValue, string_value=st.text(max_size=8)),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
    st.builds(AnyValue, double_value=st.floats(allow_nan=False)),
    st.builds(AnyValue, bytes_value=st.binary(max_size=8)),
    st.just(AnyValue()),
)


def pairs(values: st.SearchStrategy[AnyValue]) -> st.SearchStrategy[list[KeyValue]]:
    pair = st.builds(KeyValue, key=st.text(max_size=8), value=values)
    return st.lists(pair, max_size=3, unique_by=lambda each: each.key)


any_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(inner, max_size=3))),
        st.builds(AnyValue, kvlist_value=st.builds(KeyValueList, values=pairs(inner))),
    ),
    max_leaves=4,
)
times = st.integers(0, 2**64 - 1)
trace_ids = st.binary(min_size=16, max_size=16)
span_ids = st.binary(min_size=8, max_size=8)
spans = st.builds(
    Span,
    trace_id=trace_ids,
    span_id=span_ids,
    parent_span_id=st.one_of(st.just(b""), span_ids),
    trace_state=st.text(max_size=5),
    name=st.text(max_size=8),
    kind=st.sampled_from(Span.SpanKind.values()),
    start_time_unix_nano=times,
    end_time_unix_nano=times,
    attributes=pairs(any_values),
    events=st.lists(
        st.builds(
            Span.Event, name=st.text(max_size=5), time_unix_nano=times, attributes=pairs(any_values)
        ),
        max_size=2,
    ),
    links=st.lists(st.builds(Span.Link, trace_id=trace_ids, span_id=span_ids), max_size=2),
    status=st.builds(
        Status, code=st.sampled_from(Status.StatusCode.values()), message=st.text(max_size=5)
    ),
    flags=st.integers(0, 2**32 - 1),
)
resource_spans = st.lists(
    st.builds(
        ResourceSpans,
        resource=st.builds(Resource, attributes=pairs(any_values)),
        scope_spans=st.lists(
            st.builds(
                ScopeSpans,
                scope=st.builds(InstrumentationScope, name=st.text(max_size=5)),
                spans=st.lists(spans, max_size=2),
            ),
            max_size=2,
        ),
    ),
    max_size=2,
)


@given(resource_spans)
def test_spans_survive_the_way_through_json(sent: list[ResourceSpans]) -> None:
    text = json.dumps(otlp.to_json(sent))
    received = otlp.from_json(json.loads(text))
    assert received == sent
    assert otlp.read(received) == otlp.read(sent)


@given(resource_spans)
def test_every_span_is_read_with_its_own_ids_and_resource(sent: list[ResourceSpans]) -> None:
    expected = [
        (
            bytes(span.trace_id).hex(),
            bytes(span.span_id).hex(),
            bytes(span.parent_span_id).hex(),
            span.name,
            len(each.resource.attributes),
            scope_spans.scope.name,
        )
        for each in sent
        for scope_spans in each.scope_spans
        for span in scope_spans.spans
    ]
    assert [
        (s.trace_id, s.span_id, s.parent_id, s.name, len(s.resource), s.scope)
        for s in otlp.read(sent)
    ] == expected


def finished() -> list[ResourceSpans]:
    """Two spans as the SDK encodes them."""
    exporter = InMemorySpanExporter()
    resource = resources.Resource({"service.name": "shop", "service.namespace": "test"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test.scope")
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as outer:
        links = [Link(outer.get_span_context())]
        with tracer.start_as_current_span(
            "inner", attributes={"n": 2**60, "of": ["a", "b"], "share": 0.5}, links=links
        ) as inner:
            inner.add_event("seen", {"ok": True}, timestamp=5)
            inner.set_status(StatusCode.ERROR, "broken")
    return list(encode_spans(exporter.get_finished_spans()).resource_spans)


def test_a_span_of_the_sdk_is_read_whole() -> None:
    inner, outer = otlp.read(finished())
    assert (outer.name, outer.kind, outer.service) == ("outer", "SERVER", "shop")
    assert (outer.parent_id, outer.status, outer.status_message) == ("", "UNSET", "")
    assert outer.resource == {"service.name": "shop", "service.namespace": "test"}
    assert outer.scope == "test.scope"
    assert (inner.trace_id, inner.parent_id) == (outer.trace_id, outer.span_id)
    assert inner.attributes == {"n": 2**60, "of": ("a", "b"), "share": 0.5}
    assert inner.events == (otlp.Event("seen", 5, {"ok": True}),)
    assert inner.links == ((outer.trace_id, outer.span_id),)
    assert (inner.kind, inner.status, inner.status_message) == ("INTERNAL", "ERROR", "broken")
    assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns


def test_json_has_hex_ids_numbers_for_enums_and_strings_for_large_integers() -> None:
    sent = finished()
    inner, outer = otlp.read(sent)
    [resource] = otlp.to_json(sent)["resourceSpans"]
    first, _ = resource["scopeSpans"][0]["spans"]
    assert first["traceId"] == inner.trace_id
    assert first["spanId"] == inner.span_id
    assert first["parentSpanId"] == outer.span_id
    assert [first["links"][0][name] for name in ("traceId", "spanId")] == list(inner.links[0])
    assert (first["kind"], first["status"]) == (1, {"message": "broken", "code": 2})
    assert first["startTimeUnixNano"] == str(inner.start_ns)
    assert {"key": "n", "value": {"intValue": str(2**60)}} in first["attributes"]


def test_json_of_others_is_read_leniently() -> None:
    """Upper-case ids, numbers for times and fields of a later version are allowed."""
    span = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "EEE19B7EC3C1B174",
        "parentSpanId": "",
        "name": "theirs",
        "kind": 99,
        "startTimeUnixNano": 1,
        "endTimeUnixNano": "2",
        "invented": {"later": True},
    }
    [read] = otlp.read(otlp.from_json({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}))
    assert (read.trace_id, read.span_id) == ("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174")
    assert (read.parent_id, read.kind, read.service) == ("", "INTERNAL", "")
    assert (read.start_ns, read.end_ns, read.status) == (1, 2, "UNSET")


def test_no_spans_are_a_document_all_the_same() -> None:
    assert otlp.to_json([]) == {"resourceSpans": []}
    assert otlp.from_json({}) == []


@pytest.mark.parametrize(
    "data",
    [
        {"resourceSpans": 1},
        {"resourceSpans": [1]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"spanId": 12}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"endTimeUnixNano": "soon"}]}]}]},
    ],
)
def test_what_is_no_otlp_json_is_a_value_error(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not OTLP JSON"):
        otlp.from_json(data)
