"""How one service calls another."""

from __future__ import annotations  # grpc's generic classes are so in its stubs only

import json
from typing import TypeVar

import grpc

from mesh import deadlines
from mesh.attempts import Attempts
from mesh.errors import from_rpc
from mesh.rpc import ClientInterceptor

Request = TypeVar("Request")
Response = TypeVar("Response")

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
# One connection to one address would load one pod only; round_robin uses every address whose server
# says that it serves.
_SERVICE_CONFIG = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)


def open_channel(
    target: str, attempts: Attempts | None = None, *, tells_unsampled: bool = True
) -> grpc.aio.Channel:
    """A traced channel.

    Args:
        target: As gRPC knows it: host:port, dns:///name:port, unix:path.
        attempts: When a call is tried again; as `Attempts` says, unless told.
        tells_unsampled: False for a server that records whatever it is told of, sampled or not.
    """
    return grpc.aio.insecure_channel(
        target,
        interceptors=[ClientInterceptor(target, attempts or Attempts(), tells_unsampled)],
        options=[
            # Attempts are ours to make, each with its span.
            ("grpc.enable_retries", 0),
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A server that comes back must be found within a second, not within two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
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
