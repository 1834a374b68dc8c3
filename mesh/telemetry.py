"""Traces: who makes spans, where they go, and how their context travels.

Several services may share one process, and every span must still name the right one. So the
current service is a context variable, each service has a tracer provider with its own resource,
and the global provider, which instrumentation libraries use, hands each span to the provider of
the service that is current.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from opentelemetry import context as current
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, Sampler
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from mesh.errors import FeedError
from mesh.exporting import Export
from mesh.settings import Settings

SCOPE = "feedmesh"

_service: ContextVar[str] = ContextVar("feedmesh_service", default="feedmesh")


class _Providers(trace.TracerProvider):
    """One SDK provider a service, made at the service's first span."""

    def __init__(self, sampler: Sampler, processors: Sequence[SpanProcessor]) -> None:
        self._sampler = sampler
        self._processors = list(processors)
        self._by_service: dict[str, TracerProvider] = {}
        self._tracers: dict[tuple[Any, ...], trace.Tracer] = {}

    def current(self) -> TracerProvider:
        service = _service.get()
        provider = self._by_service.get(service)
        if provider is None:
            resource = Resource.create(
                {
                    "service.name": service,
                    "service.namespace": SCOPE,
                    "service.version": version(SCOPE),
                    "service.instance.id": str(uuid4()),
                }
            )
            provider = TracerProvider(
                sampler=self._sampler, resource=resource, shutdown_on_exit=False
            )
            for processor in self._processors:
                provider.add_span_processor(processor)
            self._by_service[service] = provider
        return provider

    def add_processor(self, processor: SpanProcessor) -> None:
        self._processors.append(processor)
        for provider in self._by_service.values():
            provider.add_span_processor(processor)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> trace.Tracer:
        scope = (instrumenting_module_name, instrumenting_library_version, schema_url)
        # Asked for at every span: making one anew would cost more than the span.
        known = self._tracers.get(scope)
        if known is None:
            known = self._tracers[scope] = _CurrentTracer(self, scope)
        return known

    def shutdown(self) -> None:
        for processor in self._processors:
            processor.shutdown()


class _CurrentTracer(trace.Tracer):
    """A tracer that belongs to whichever service is current when a span starts."""

    def __init__(self, providers: _Providers, scope: tuple[Any, ...]) -> None:
        self._providers = providers
        self._scope = scope
        self._tracers: dict[TracerProvider, trace.Tracer] = {}

    def _tracer(self) -> trace.Tracer:
        provider = self._providers.current()
        tracer = self._tracers.get(provider)
        if tracer is None:
            tracer = self._tracers[provider] = provider.get_tracer(*self._scope)
        return tracer

    def start_span(self, *args: Any, **kwargs: Any) -> Span:
        return self._tracer().start_span(*args, **kwargs)

    # The contract gives a context manager that is a decorator too; the SDK's own is handed on.
    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer().start_as_current_span(*args, **kwargs)


_providers: _Providers | None = None


def setup(settings: Settings, *processors: SpanProcessor) -> None:
    """Prepares tracing for this process; called once, by whoever starts it.

    Args:
        settings: FEED_OTLP_ENDPOINT and FEED_TRACE_RATIO are read.
        processors: Further receivers of finished spans.
    """
    global _providers  # noqa: PLW0603  one process, one set of providers
    if _providers is not None:
        for processor in processors:
            _providers.add_processor(processor)
        return
    every = list(processors)
    if settings.otlp_endpoint:
        every.append(Export(settings.otlp_endpoint))
    _providers = _Providers(ParentBasedTraceIdRatio(settings.trace_ratio), every)
    trace.set_tracer_provider(_providers)


def shutdown() -> None:
    """Sends the spans that wait. Blocks for some seconds where the collector does not answer."""
    if _providers is not None:
        _providers.shutdown()


@contextmanager
def as_service(name: str) -> Iterator[None]:
    """Within it, spans belong to the service `name`."""
    token = _service.set(name)
    try:
        yield
    finally:
        _service.reset(token)


def become_service(name: str) -> None:
    """From now on, this task and the tasks it starts belong to the service `name`."""
    _service.set(name)


def service() -> str:
    """The current service."""
    return _service.get()


@contextmanager
def bare_span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
    context: Context | None = None,
    links: Sequence[Link] = (),
) -> Iterator[Span]:
    """A current span that ends with the block, and whose status is its user's to set.

    With a `context`, the block runs in that context, so that its baggage goes on, too.
    """
    token = None if context is None else current.attach(context)
    try:
        with trace.get_tracer(SCOPE).start_as_current_span(
            name,
            kind=kind,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as started:
            yield started
    finally:
        if token is not None:
            current.detach(token)


@contextmanager
def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
    context: Context | None = None,
    links: Sequence[Link] = (),
) -> Iterator[Span]:
    """A current span that ends with the block, whichever way the block ends.

    An exception sets `error.type` and the status ERROR, and is raised on.
    """
    with bare_span(name, kind=kind, attributes=attributes, context=context, links=links) as started:
        try:
            yield started
        except BaseException as error:
            set_error(started, error)
            raise


def set_error(target: Span, error: BaseException) -> None:
    """Marks the span as failed by the error."""
    target.set_attribute("error.type", error_type(error))
    target.set_status(Status(StatusCode.ERROR, str(error) or type(error).__name__))
    # Where somebody else's cancellation was noticed tells nothing.
    if not isinstance(error, FeedError | asyncio.CancelledError):
        target.record_exception(error)


def error_type(error: BaseException) -> str:
    """A name of low cardinality: the gRPC code of expected errors, else the class."""
    if isinstance(error, asyncio.CancelledError):
        # Whatever is cut off is so by the same name.
        return "CANCELLED"
    return error.reason if isinstance(error, FeedError) else type(error).__qualname__


def inject() -> dict[str, str]:
    """The current context as W3C headers: traceparent, tracestate, baggage."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


def extract(headers: Mapping[str, str]) -> Context:
    """The context that the headers carry; an empty one where they carry none."""
    return propagate.extract(headers, context=Context())


def link_to(headers: Mapping[str, str]) -> list[Link]:
    """A link to the span that the headers name, or no link."""
    remote = trace.get_current_span(extract(headers)).get_span_context()
    return [Link(remote)] if remote.is_valid else []


def trace_id() -> str:
    """The current trace's id, 32 hex digits; empty without a span."""
    current = trace.get_current_span().get_span_context()
    return trace.format_trace_id(current.trace_id) if current.is_valid else ""


def traceresponse() -> str:
    """The value of the `traceresponse` header (W3C Trace Context level 2); empty without a span."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return ""
    ids = f"{trace.format_trace_id(current.trace_id)}-{trace.format_span_id(current.span_id)}"
    return f"00-{ids}-{int(current.trace_flags):02x}"


def is_recording() -> bool:
    """Whether what is said of the current span is kept; false while its trace is not sampled."""
    return trace.get_current_span().is_recording()


def annotate(attributes: Mapping[str, AttributeValue]) -> None:
    """Adds attributes to the current span."""
    trace.get_current_span().set_attributes(dict(attributes))
