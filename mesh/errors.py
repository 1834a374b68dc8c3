"""What can go wrong, once, for all of feedmesh.

Code raises a `FeedError`. `mesh.server` turns it into a gRPC status with details, `mesh.channels`
turns that back into the same error at the caller, and the gateway turns it into problem+json. The
class attributes are the whole mapping.
"""

from collections.abc import Mapping
from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

ERROR_DOMAIN = "feedmesh"


class FeedError(Exception):
    """Base of every expected error.

    Args:
        detail: A sentence for the caller; no secrets, no stack.
        fields: Per bad input field, what is wrong with it.
        retry_after_s: When trying again makes sense, in seconds.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        fields: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = dict(fields or {})
        self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """The name that machines match on, e.g. NOT_FOUND."""
        return self.code.name


class InvalidArgument(FeedError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 422
    title = "Invalid input"


class Unauthenticated(FeedError):
    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    title = "Not authenticated"


class PermissionDenied(FeedError):
    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    title = "Not allowed"


class NotFound(FeedError):
    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    title = "Not found"


class AlreadyExists(FeedError):
    code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409
    title = "Already exists"


class FailedPrecondition(FeedError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409
    title = "Conflict"


class ResourceExhausted(FeedError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    title = "Too much"


class Unavailable(FeedError):
    """A backend is away; the same call may work later."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    title = "Temporarily unavailable"


class DeadlineExceeded(FeedError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    title = "Took too long"


class Internal(FeedError):
    """Something unexpected; the detail says nothing of the inside."""


_BY_CODE: dict[grpc.StatusCode, type[FeedError]] = {
    error.code: error
    for error in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Internal,
    )
}


def to_status(error: FeedError) -> status_pb2.Status:
    """The error as google.rpc.Status with ErrorInfo, BadRequest and RetryInfo details."""
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)]
    packed = [_pack(detail) for detail in details]
    if error.fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=name, description=what)
            for name, what in error.fields.items()
        ]
        packed.append(_pack(error_details_pb2.BadRequest(field_violations=violations)))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        packed.append(_pack(retry))
    number: int = error.code.value[0]
    return status_pb2.Status(
        code=code_pb2.Code.ValueType(number), message=error.detail, details=packed
    )


def from_rpc(rpc_error: grpc.aio.AioRpcError) -> FeedError:
    """The error that the callee raised; transport failures become `Unavailable`."""
    kind = _BY_CODE.get(rpc_error.code(), Internal)
    fields: dict[str, str] = {}
    retry_after_s: float | None = None
    # The sync helper works on a caught AioRpcError; the aio one wants a live call.
    status = rpc_status.from_call(rpc_error)  # type: ignore[arg-type]
    for detail in status.details if status is not None else ():
        bad_request, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(bad_request):
            fields = {v.field: v.description for v in bad_request.field_violations}
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return kind(rpc_error.details() or kind.title, fields=fields, retry_after_s=retry_after_s)


def _pack(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
