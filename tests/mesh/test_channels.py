"""A channel spreads its calls over the servers that serve."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc
import pytest
from feed.v1.filter_pb2 import (
    FilterCandidatesRequest,
    FilterCandidatesResponse,
    ListSeenRequest,
    ListSeenResponse,
)
from feed.v1.filter_pb2_grpc import (
    FilterServiceServicer,
    FilterServiceStub,
    add_FilterServiceServicer_to_server,
)

from mesh.channels import call, open_channel
from mesh.errors import Unavailable
from mesh.server import GrpcServer
from mesh.settings import Settings
from tests.eventually import eventually
from tests.fixtures.valkey import free_port

NAMES = ("first", "second")


class Replica(FilterServiceServicer):
    """Answers with its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def ListSeen(self, request: ListSeenRequest, context: object) -> ListSeenResponse:
        return ListSeenResponse(degraded=[self.name])

    async def FilterCandidates(
        self, request: FilterCandidatesRequest, context: object
    ) -> FilterCandidatesResponse:
        raise AssertionError


@pytest.fixture
async def replicas() -> AsyncIterator[tuple[grpc.aio.Channel, list[GrpcServer]]]:
    """A client of two servers, which answer with their names."""
    async with AsyncExitStack() as running:
        ports, servers = [free_port(), free_port()], []
        for name, port in zip(NAMES, ports, strict=True):
            served = (add_FilterServiceServicer_to_server, Replica(name), "feed.v1.FilterService")
            server = GrpcServer("filter_svc", f"127.0.0.1:{port}", [served], Settings())
            servers.append(await running.enter_async_context(server))
        channel = open_channel(f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}")
        yield await running.enter_async_context(channel), servers


async def answers(channel: grpc.aio.Channel, calls: int) -> Counter[str]:
    stub = FilterServiceStub(channel)

    async def answer() -> str:
        return (await call(stub.ListSeen, ListSeenRequest(reader_id=1), timeout=5)).degraded[0]

    return Counter([await answer() for _ in range(calls)])


async def test_calls_are_spread_over_all_servers(
    replicas: tuple[grpc.aio.Channel, list[GrpcServer]],
) -> None:
    channel, _ = replicas

    async def both_answer() -> bool:
        return set(await answers(channel, 2)) == set(NAMES)

    await eventually(both_answer)
    assert await answers(channel, 20) == {"first": 10, "second": 10}


async def test_a_server_that_says_it_does_not_serve_gets_no_calls(
    replicas: tuple[grpc.aio.Channel, list[GrpcServer]],
) -> None:
    channel, (first, second) = replicas

    async def only_the_second() -> bool:
        return set(await answers(channel, 4)) == {"second"}

    await first.set_serving(False)
    await eventually(only_the_second)
    await first.set_serving(True)
    await second.set_serving(False)

    async def only_the_first() -> bool:
        return set(await answers(channel, 4)) == {"first"}

    await eventually(only_the_first)


async def test_a_client_that_only_meets_servers_that_do_not_serve_is_told_so(
    replicas: tuple[grpc.aio.Channel, list[GrpcServer]],
) -> None:
    channel, servers = replicas
    for server in servers:
        await server.set_serving(False)

    async def refused() -> bool:
        try:
            await answers(channel, 1)
        except Unavailable:
            return True
        return False

    await eventually(refused)
