"""For those who run it: is it alive, is it ready, how is it doing. None of this is traced."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from grpc.aio import Channel
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from gateway.backends import Backends, Here
from gateway.schemas import Health, Readiness
from mesh import metrics
from mesh.channels import call
from mesh.errors import FeedError, Unavailable

router = APIRouter(tags=["operations"])
_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
_TIMEOUT_S = 1.0

if TYPE_CHECKING:
    from grpc.aio import UnaryUnaryMultiCallable


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process is alive."""
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "A part is not ready."}})
async def readyz(here: Here, response: Response) -> Readiness:
    """Whether feeds can be served: the source of truth and the four services answer."""
    checks: dict[str, Awaitable[object]] = {"sql": here.users.get([0])}
    checks |= {name: _serves(here, name) for name in here.services.health}
    with trace.use_span(_unsampled()):
        found = await asyncio.gather(*(_state(check) for check in checks.values()))
    ready = all(state == "ok" for state in found)
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, parts=dict(zip(checks, found, strict=True)))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "OpenMetrics.", "content": {metrics.CONTENT_TYPE: {}}}},
)
async def exposition() -> Response:
    """The metrics of this process."""
    return Response(metrics.exposition(), headers={"Content-Type": metrics.CONTENT_TYPE})


def is_untraced(path: str) -> bool:
    """Whether the path is only about how feedmesh is doing, also where it does not exist."""
    return path in _PATHS or path.startswith("/debug/")


def health_check(
    channel: Channel,
) -> "UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse]":
    """The standard health check; its generated stub is typed for synchronous channels only."""
    return channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )


async def _serves(here: Backends, name: str) -> None:
    answer = await call(here.services.health[name], HealthCheckRequest(), timeout=_TIMEOUT_S)
    if answer.status != HealthCheckResponse.SERVING:
        raise Unavailable(HealthCheckResponse.ServingStatus.Name(answer.status))


async def _state(check: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await check
    except TimeoutError:
        return "does not answer"
    except FeedError as error:
        return error.detail
    return "ok"


def _unsampled() -> trace.Span:
    """A parent that keeps the calls of a probe out of the traces."""
    ids = RandomIdGenerator()
    context = trace.SpanContext(ids.generate_trace_id(), ids.generate_span_id(), is_remote=False)
    return trace.NonRecordingSpan(context)
