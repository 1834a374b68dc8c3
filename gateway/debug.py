"""The last traces, for those who look into feedmesh. Only with FEED_DEBUG_TRACES; not traced."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from gateway.problems import responses
from gateway.schemas import Traces, TraceSummary, utc
from mesh import otlp
from mesh.errors import NotFound
from mesh.trace_buffer import TraceBuffer

router = APIRouter(tags=["operations"])


def _of_app(request: Request) -> TraceBuffer:
    buffer: TraceBuffer = request.app.state.traces
    return buffer


Buffer = Annotated[TraceBuffer, Depends(_of_app)]
TraceId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="32 hex digits, lowercase.")]


@router.get("/debug/traces", responses=responses(public=True))
async def list_traces(
    buffer: Buffer,
    limit: Annotated[int, Query(ge=1, le=100, description="Traces to tell of.")] = 20,
) -> Traces:
    """The newest traces, the newest first."""

    def read() -> list[TraceSummary]:
        # A trace may go while the others are read.
        traces = [otlp.read(buffer.trace(trace_id)) for trace_id in buffer.newest(limit)]
        summaries = [summarize(spans) for spans in traces if spans]
        return sorted(summaries, key=lambda each: each.started_at, reverse=True)

    return Traces(items=await asyncio.to_thread(read))


@router.get("/debug/traces/{trace_id}", responses=responses(NotFound, public=True))
async def get_trace(buffer: Buffer, trace_id: TraceId) -> dict[str, Any]:
    """What has arrived of one trace by now, of all processes, as OTLP JSON."""

    def read() -> dict[str, Any]:
        return otlp.to_json(buffer.trace(trace_id))

    found = await asyncio.to_thread(read)
    if not found["resourceSpans"]:
        raise NotFound("No such trace is kept, or not any more, or none of its spans has ended.")
    return found


def summarize(spans: Sequence[otlp.Span]) -> TraceSummary:
    """One trace in a line, from at least one span."""
    first = next(iter(otlp.tops(spans)), spans[0])
    start_ns = min(span.start_ns for span in spans)
    return TraceSummary(
        trace_id=first.trace_id,
        name=first.name,
        started_at=utc(start_ns // 1_000_000),
        duration_ms=(max(span.end_ns for span in spans) - start_ns) / 1e6,
        spans=len(spans),
        errors=sum(span.status == "ERROR" for span in spans),
        services=list(dict.fromkeys(s.service for s in sorted(spans, key=lambda s: s.start_ns))),
    )
