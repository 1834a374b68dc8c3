"""How one service calls another."""

from __future__ import annotations  # grpc's generic classes are so in its stubs only

import json
from typing import Any, TypeVar

import grpc

from mesh import deadlines
from mesh.attempts import Attempts
from mesh.errors import from_rpc
from mesh.rpc import ClientInterceptor

Request = TypeVar("Request")
Response = TypeVar("Response")

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# One connection to one address would load one pod only; round_robin uses every address.
_SPREAD: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
# And of those only the ones whose server says that it serves.
_WATCHED = {**_SPREAD, "healthCheckConfig": {"serviceName": ""}}


def open_channel(
    target: str, attempts: Attempts | None = None, *, is_ours: bool = True
) -> grpc.aio.Channel:
    """A traced channel.

    Args:
        target: As gRPC knows it: host:port, dns:///name:port, unix:path.
        attempts: When a call is tried again; as `Attempts` says, unless told.
        is_ours: False for a server that records whatever trace it is told of, sampled or not, and
            that cannot be watched for whether it serves.
    """
    return grpc.aio.insecure_channel(
        target,
        interceptors=[ClientInterceptor(target, attempts or Attempts(), is_ours)],
        options=[
            # Attempts are ours to make, each with its span.
            ("grpc.enable_retries", 0),
            ("grpc.service_config", json.dumps(_WATCHED if is_ours else _SPREAD)),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A server that comes back must be found within a second, not within two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # Nor may it take half a minute to ask for the addresses of those that replaced it.
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
        ],
    )


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    *,
    timeout: float,
) -> Response:
    """A unary call that raises what the callee raised, as `mesh.errors` classes.

    Args:
        method: A stub's method.
        request: Its message.
        timeout: Seconds; cut to what is left of the current request's deadline.
    """
    try:
        return await method(request, timeout=deadlines.remaining(timeout))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
