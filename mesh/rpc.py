"""Interceptors of every gRPC call: traces, metrics, errors and deadlines, on both sides.

opentelemetry-instrumentation-grpc's asyncio interceptors leave the server's status unset on errors
and lose the client's span when the caller is cancelled (docs/decisions/0004), hence our own, on the
public semantic conventions.
"""

from __future__ import annotations  # grpc's generic classes are so in its stubs only

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc.aio import ClientCallDetails, Metadata, ServicerContext
from grpc_status import rpc_status
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from mesh import deadlines, metrics, telemetry
from mesh.errors import FeedError, Internal, to_status

# The codes that are the server's fault, by the rpc conventions; the others leave its span unset.
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# Asked for by tools and probes, over and over; their spans would say nothing of a feed.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.")


class ClientInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """A CLIENT span a call, which sends its context along and ends however the call ends.

    Args:
        target: The channel's target, for server.address and server.port.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("dns:///").rpartition(":")
        self._server: dict[str, str | int] = {"server.address": host or target}
        if port.isdigit():
            self._server["server.port"] = int(port)

    async def intercept_unary_unary(
        self,
        continuation: Callable[[ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        method = _method_name(client_call_details.method)
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, **self._server}
        started, code = time.perf_counter(), grpc.StatusCode.CANCELLED
        with telemetry.bare_span(method, kind=SpanKind.CLIENT, attributes=attributes) as span:
            metadata = Metadata(*(client_call_details.metadata or ()))
            for key, value in telemetry.inject().items():
                metadata[key] = value
            details = ClientCallDetails(
                client_call_details.method,
                client_call_details.timeout,
                metadata,
                client_call_details.credentials,
                client_call_details.wait_for_ready,
            )
            call = await continuation(details, request)
            try:
                await call
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
                _describe(span, code, error.details(), faults=None)
            except asyncio.CancelledError:
                # Whoever waited has gone: the callee must stop too.
                call.cancel()
                _describe(span, code, None, faults=None)
                raise
            finally:
                span.set_attribute("rpc.response.status_code", code.name)
                metrics.observe(
                    metrics.RPC_CLIENT.labels(method, code.name), time.perf_counter() - started
                )
            return call


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """A SERVER span a call; `FeedError`s become statuses with details, others INTERNAL.

    Args:
        service: Whom the spans belong to.
    """

    def __init__(self, service: str) -> None:
        self._service = service

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or handler.unary_unary is None or path.startswith(_UNTRACED):
            return handler
        headers = _headers(handler_call_details.invocation_metadata)
        servicer = handler.unary_unary

        async def handle(request: Any, context: ServicerContext[Any, Any]) -> Any:
            with telemetry.as_service(self._service):
                return await _serve(servicer, request, context, _method_name(path), headers)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def _serve(
    servicer: Any,
    request: Any,
    context: ServicerContext[Any, Any],
    method: str,
    headers: dict[str, str],
) -> Any:
    attributes = {"rpc.system.name": "grpc", "rpc.method": method}
    started, code = time.perf_counter(), grpc.StatusCode.OK
    error: FeedError | None = None
    with telemetry.bare_span(
        method, kind=SpanKind.SERVER, attributes=attributes, context=telemetry.extract(headers)
    ) as span:
        try:
            left = context.time_remaining()
            with deadlines.within(left if left is not None else float("inf")):
                return await servicer(request, context)
        except FeedError as expected:
            error = expected
        except asyncio.CancelledError:
            # gRPC cancels the handler both when the client goes away and when its deadline ends.
            left = context.time_remaining()
            expired = left is not None and left <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            _describe(span, code, None, faults=_SERVER_FAULTS)
            raise
        except Exception as unexpected:
            span.record_exception(unexpected)
            error = Internal(f"{method} failed unexpectedly; its trace has the exception")
        finally:
            if error is not None:
                code = error.code
                _describe(span, code, error.detail, faults=_SERVER_FAULTS)
            span.set_attribute("rpc.response.status_code", code.name)
            metrics.observe(
                metrics.RPC_SERVER.labels(method, code.name), time.perf_counter() - started
            )
    assert error is not None  # noqa: S101  every other way has returned or raised
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


def _describe(
    span: Span, code: grpc.StatusCode, detail: str | None, faults: frozenset[grpc.StatusCode] | None
) -> None:
    """Puts a failed call's code on its span; outside `faults` (None: all are) it is no error."""
    if faults is None or code in faults:
        span.set_attribute("error.type", code.name)
        span.set_status(Status(StatusCode.ERROR, detail))


def _method_name(path: str | bytes) -> str:
    return (path.decode() if isinstance(path, bytes) else path).lstrip("/")


def _headers(metadata: Sequence[tuple[str, str | bytes]] | None) -> dict[str, str]:
    return {key: value for key, value in metadata or () if isinstance(value, str)}
