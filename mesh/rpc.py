"""Interceptors of every gRPC call: traces, metrics, errors and deadlines, on both sides.

opentelemetry-instrumentation-grpc's asyncio interceptors leave the server's status unset on errors
and lose the client's span when the caller is cancelled (docs/decisions/0004), hence our own, on the
public semantic conventions.
"""

from __future__ import annotations  # grpc's generic classes are so in its stubs only

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
from grpc.aio import ClientCallDetails, Metadata, ServicerContext
from grpc_status import rpc_status
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from mesh import deadlines, metrics, telemetry
from mesh.attempts import Attempts
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
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# Asked for by tools and probes, over and over; their spans would say nothing of a feed.
_UNTRACED = ("/grpc.health.", "/grpc.reflection.")

Continuation = Callable[[ClientCallDetails, Any], Awaitable[Any]]
Address = Mapping[str, str | int]


class ClientInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """A CLIENT span an attempt, which sends its context along and ends however the attempt ends.

    Args:
        target: The channel's target, for server.address and server.port.
        attempts: When a call is tried again.
        tells_unsampled: Whether the server is told of traces that are not sampled, too.
    """

    def __init__(self, target: str, attempts: Attempts, tells_unsampled: bool) -> None:
        self._server = address_of(target)
        self._attempts = attempts
        self._tells_unsampled = tells_unsampled

    async def intercept_unary_unary(
        self, continuation: Continuation, client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        timeout = client_call_details.timeout
        ends = None if timeout is None else time.monotonic() + timeout

        async def attempt(number: int) -> tuple[Any, grpc.StatusCode]:
            left = None if ends is None else max(ends - time.monotonic(), 0.0)
            return await self._attempt(continuation, client_call_details, request, left, number)

        return await self._attempts.run(attempt, ends)

    async def _attempt(
        self,
        continuation: Continuation,
        details: ClientCallDetails,
        request: Any,
        timeout: float | None,
        number: int,
    ) -> tuple[Any, grpc.StatusCode]:
        """The call when it has ended, and its status; raises only what cancels the caller."""
        method = _method_name(details.method)
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, **self._server}
        if number:
            attributes["feed.rpc.previous_attempts"] = number
        started, code = time.perf_counter(), grpc.StatusCode.CANCELLED
        call: Any = None
        with telemetry.bare_span(method, kind=SpanKind.CLIENT, attributes=attributes) as span:
            try:
                metadata = Metadata(*(details.metadata or ()))
                if self._tells_unsampled or span.get_span_context().trace_flags.sampled:
                    for key, value in telemetry.inject().items():
                        metadata[key] = value
                call = await continuation(
                    ClientCallDetails(
                        details.method, timeout, metadata, details.credentials,
                        details.wait_for_ready,
                    ),
                    request,
                )  # fmt: skip
                await call
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as error:
                code = error.code()
                _fail(span, code, error.details())
            except asyncio.CancelledError:
                # Whoever waited has gone: the callee must stop too.
                if call is not None:
                    call.cancel()
                _fail(span, code, None)
                raise
            finally:
                span.set_attribute("rpc.response.status_code", code.name)
                metrics.observe(
                    metrics.RPC_CLIENT.labels("grpc", method, code.name),
                    time.perf_counter() - started,
                )
        return call, code


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """A SERVER span a call; `FeedError`s become statuses with details, others INTERNAL.

    Args:
        service: Whom the spans belong to.
        address: Where the server listens, as gRPC knows it.
    """

    def __init__(self, service: str, address: str) -> None:
        self._service = service
        self._server = address_of(address)

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
                return await _serve(
                    servicer, request, context, _method_name(path), headers, self._server
                )

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
    server: Address,
) -> Any:
    attributes = {"rpc.system.name": "grpc", "rpc.method": method, **server}
    started, code = time.perf_counter(), grpc.StatusCode.OK
    detail: str | None = None
    error: FeedError | None = None
    with telemetry.bare_span(
        method, kind=SpanKind.SERVER, attributes=attributes, context=telemetry.extract(headers)
    ) as span:
        try:
            left = context.time_remaining()
            with deadlines.within(left if left is not None else float("inf")):
                response = await servicer(request, context)
            code, detail = _told(context)
            return response
        except FeedError as expected:
            error = expected
        except grpc.aio.AbortError:
            code, detail = _told(context)
            raise
        except asyncio.CancelledError:
            # gRPC cancels the handler both when the client goes away and when its deadline ends.
            left = context.time_remaining()
            expired = left is not None and left <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        except Exception as unexpected:
            span.record_exception(unexpected)
            error = Internal(f"{method} failed unexpectedly; its trace has the exception")
        finally:
            if error is not None:
                code, detail = error.code, error.detail
            if code in _SERVER_FAULTS:
                _fail(span, code, detail)
            span.set_attribute("rpc.response.status_code", code.name)
            metrics.observe(
                metrics.RPC_SERVER.labels("grpc", method, code.name), time.perf_counter() - started
            )
    assert error is not None  # noqa: S101  every other way has returned or raised
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


def address_of(target: str) -> Address:
    """`server.address` and `server.port` of a gRPC target."""
    if target.startswith("unix:"):
        return {"server.address": target.removeprefix("unix:")}
    host, _, port = target.removeprefix("dns:///").rpartition(":")
    if not port.isdigit():
        return {"server.address": target}
    return {"server.address": host, "server.port": int(port)}


def _told(context: ServicerContext[Any, Any]) -> tuple[grpc.StatusCode, str | None]:
    """The status that a servicer has set by itself."""
    code = context.code()
    if isinstance(code, int):
        code = _CODES.get(code, grpc.StatusCode.UNKNOWN)
    return code or grpc.StatusCode.OK, context.details() or None


def _fail(span: Span, code: grpc.StatusCode, detail: str | None) -> None:
    span.set_attribute("error.type", code.name)
    span.set_status(Status(StatusCode.ERROR, detail))


def _method_name(path: str | bytes) -> str:
    return (path.decode() if isinstance(path, bytes) else path).lstrip("/")


def _headers(metadata: Sequence[tuple[str, str | bytes]] | None) -> dict[str, str]:
    return {key: value for key, value in metadata or () if isinstance(value, str)}
