"""A call's two spans, however the call ends. Over a real channel to a real server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

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
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mesh import errors, telemetry
from mesh.attempts import Attempts
from mesh.channels import call, open_channel
from mesh.server import GrpcServer
from mesh.settings import Settings
from tests.eventually import eventually
from tests.fixtures.spans import attribute, service
from tests.fixtures.valkey import free_port

METHOD = "feed.v1.FilterService/ListSeen"
FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Answer = Callable[[ListSeenRequest, Context], Awaitable[ListSeenResponse]]


class Servicer(FilterServiceServicer):
    """Answers as it was told to."""

    def __init__(self) -> None:
        self.answer: Answer = self.at_once
        self.calls = 0
        self.cancelled = 0

    async def ListSeen(self, request: ListSeenRequest, context: Context) -> ListSeenResponse:
        self.calls += 1
        return await self.answer(request, context)

    async def FilterCandidates(
        self, request: FilterCandidatesRequest, context: Context
    ) -> FilterCandidatesResponse:
        raise AssertionError

    async def at_once(self, *_: object) -> ListSeenResponse:
        return ListSeenResponse()

    async def never(self, *_: object) -> ListSeenResponse:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError

    def fails(self, error: Exception, times: int = 1_000) -> None:
        async def answer(*_: object) -> ListSeenResponse:
            if self.calls <= times:
                raise error
            return ListSeenResponse()

        self.answer = answer


class Peer:
    """A server and a client of it, which belongs to another service."""

    def __init__(self, servicer: Servicer, port: int, spans: InMemorySpanExporter) -> None:
        self.servicer = servicer
        self.port = port
        self.spans = spans

    async def ask(self, timeout: float = 5.0, **attempts: float) -> ListSeenResponse:
        policy = Attempts(**attempts)  # type: ignore[arg-type]
        with telemetry.as_service("asker"):
            async with open_channel(f"127.0.0.1:{self.port}", policy) as channel:
                stub = FilterServiceStub(channel)
                with telemetry.span("ask"):
                    return await call(stub.ListSeen, ListSeenRequest(reader_id=7), timeout=timeout)

    async def ended(self, clients: int = 1, servers: int = 1) -> tuple[list[ReadableSpan], ...]:
        """The client spans and the server spans, when so many have ended."""

        def found() -> tuple[list[ReadableSpan], list[ReadableSpan]]:
            spans = [s for s in self.spans.get_finished_spans() if s.name == METHOD]
            of_clients = [s for s in spans if s.kind is SpanKind.CLIENT]
            of_servers = [s for s in spans if s.kind is SpanKind.SERVER]
            assert (len(of_clients), len(of_servers)) == (clients, servers)
            return of_clients, of_servers

        return await eventually(found)

    async def only(self) -> tuple[ReadableSpan, ReadableSpan]:
        [client], [server] = await self.ended()
        return client, server


@asynccontextmanager
async def serving(servicer: Servicer, port: int) -> AsyncIterator[None]:
    name = "feed.v1.FilterService"
    services = [(add_FilterServiceServicer_to_server, servicer, name)]
    settings = Settings(shutdown_grace_s=0.1)
    async with GrpcServer("answerer", f"127.0.0.1:{port}", services, settings):
        yield


@pytest.fixture
async def peer(spans: InMemorySpanExporter) -> AsyncIterator[Peer]:
    servicer, port = Servicer(), free_port()
    async with serving(servicer, port):
        yield Peer(servicer, port, spans)


def told(span: ReadableSpan) -> tuple[object, StatusCode, object]:
    return (
        attribute(span, "rpc.response.status_code"),
        span.status.status_code,
        attribute(span, "error.type"),
    )


def failed(code: str) -> tuple[object, StatusCode, object]:
    return code, StatusCode.ERROR, code


def fine(code: str = "OK") -> tuple[object, StatusCode, object]:
    return code, StatusCode.UNSET, None


async def test_a_call_has_a_client_span_and_below_it_a_server_span(peer: Peer) -> None:
    await peer.ask()
    client, server = await peer.only()
    [root] = [s for s in peer.spans.get_finished_spans() if s.name == "ask"]
    assert (told(client), told(server)) == (fine(), fine())
    assert (service(client), service(server)) == ("asker", "answerer")
    assert client.parent is not None
    assert client.parent.span_id == root.context.span_id
    assert server.parent is not None
    assert server.parent.span_id == client.context.span_id
    for span in (client, server):
        assert attribute(span, "rpc.system.name") == "grpc"
        assert attribute(span, "rpc.method") == METHOD
        assert attribute(span, "server.address") == "127.0.0.1"
        assert attribute(span, "server.port") == peer.port


@pytest.mark.parametrize(
    "kind",
    [
        errors.InvalidArgument,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.NotFound,
        errors.AlreadyExists,
        errors.FailedPrecondition,
        errors.ResourceExhausted,
        errors.DeadlineExceeded,
        errors.Internal,
    ],
)
async def test_an_error_is_one_at_the_client_and_at_the_server_if_it_is_its_fault(
    peer: Peer, kind: type[errors.FeedError]
) -> None:
    peer.servicer.fails(kind("no"))
    with pytest.raises(kind):
        await peer.ask()
    client, server = await peer.only()
    code = kind.code.name
    assert told(client) == failed(code)
    assert told(server) == (failed(code) if code in FAULTS else fine(code))
    assert client.status.description == "no"


async def test_an_exception_nobody_foresaw_is_recorded_at_the_server_and_not_told(
    peer: Peer,
) -> None:
    peer.servicer.fails(ValueError("the secret inside"))
    with pytest.raises(errors.Internal) as raised:
        await peer.ask()
    client, server = await peer.only()
    assert (told(client), told(server)) == (failed("INTERNAL"), failed("INTERNAL"))
    assert "secret" not in raised.value.detail
    [event] = server.events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "ValueError"
    assert not client.events


@pytest.mark.parametrize("code", ["DATA_LOSS", "OUT_OF_RANGE"])
async def test_a_servicers_own_abort_gives_the_code_it_chose(peer: Peer, code: str) -> None:
    async def abort(_: object, context: Context) -> ListSeenResponse:
        await context.abort(grpc.StatusCode[code], "aborted")
        raise AssertionError

    peer.servicer.answer = abort
    with pytest.raises(errors.FeedError):
        await peer.ask()
    client, server = await peer.only()
    assert told(client) == failed(code)
    assert told(server) == (failed(code) if code in FAULTS else fine(code))


async def test_a_code_that_a_servicer_sets_is_the_spans(peer: Peer) -> None:
    async def answer(_: object, context: Context) -> ListSeenResponse:
        context.set_code(grpc.StatusCode.UNKNOWN)
        context.set_details("set")
        return ListSeenResponse()

    peer.servicer.answer = answer
    with pytest.raises(errors.FeedError):
        await peer.ask()
    client, server = await peer.only()
    assert (told(client), told(server)) == (failed("UNKNOWN"), failed("UNKNOWN"))


async def test_a_deadline_ends_both_sides_and_both_say_so(peer: Peer) -> None:
    peer.servicer.answer = peer.servicer.never
    with pytest.raises(errors.DeadlineExceeded):
        await peer.ask(timeout=0.2)
    client, server = await peer.only()
    assert told(client) == failed("DEADLINE_EXCEEDED")
    assert told(server) == failed("DEADLINE_EXCEEDED")
    assert peer.servicer.cancelled == 1


@pytest.mark.parametrize("hedge_after_s", [None, 0.01])
async def test_a_caller_that_goes_away_stops_its_callee_and_both_spans_end(
    peer: Peer, hedge_after_s: float | None
) -> None:
    peer.servicer.answer = peer.servicer.never
    asking = asyncio.create_task(peer.ask(hedge_after_s=hedge_after_s, limit=2))  # type: ignore[arg-type]
    calls = 1 if hedge_after_s is None else 2
    await eventually(lambda: peer.servicer.calls == calls)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    clients, servers = await peer.ended(calls, calls)
    assert [told(client) for client in clients] == [failed("CANCELLED")] * calls
    # To be left by its caller is no fault of the server.
    assert [told(server) for server in servers] == [fine("CANCELLED")] * calls
    assert peer.servicer.cancelled == calls


async def test_a_timeout_of_asyncio_is_a_cancellation(peer: Peer) -> None:
    peer.servicer.answer = peer.servicer.never
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await peer.ask()
    client, server = await peer.only()
    assert (told(client), told(server)) == (failed("CANCELLED"), fine("CANCELLED"))


async def test_each_attempt_at_a_server_that_is_away_is_a_failed_client_span(
    spans: InMemorySpanExporter,
) -> None:
    peer = Peer(Servicer(), free_port(), spans)
    with pytest.raises(errors.Unavailable):
        await peer.ask()
    clients, _ = await peer.ended(3, 0)
    assert [told(client) for client in clients] == [failed("UNAVAILABLE")] * 3
    assert [attribute(c, "feed.rpc.previous_attempts") for c in clients] == [None, 1, 2]


async def test_a_retried_call_has_a_pair_of_spans_an_attempt(peer: Peer) -> None:
    peer.servicer.fails(errors.Unavailable("not yet"), times=2)
    await peer.ask()
    clients, servers = await peer.ended(3, 3)
    unavailable = failed("UNAVAILABLE")
    assert [told(client) for client in clients] == [unavailable, unavailable, fine()]
    assert [told(server) for server in servers] == [unavailable, unavailable, fine()]
    parents = [server.parent.span_id for server in servers if server.parent]
    assert parents == [client.context.span_id for client in clients]
    assert len({client.parent.span_id for client in clients if client.parent}) == 1
    assert clients[0].end_time is not None
    assert clients[1].start_time is not None
    assert clients[0].end_time <= clients[1].start_time


async def test_attempts_end_with_the_calls_deadline(peer: Peer) -> None:
    peer.servicer.fails(errors.Unavailable("never"))
    with pytest.raises(errors.Unavailable):
        await peer.ask(timeout=0.3, limit=1_000, backoff_s=0.1)
    clients, servers = await peer.ended(peer.servicer.calls, peer.servicer.calls)
    assert 1 < len(clients) == len(servers) < 10


async def test_a_hedged_call_takes_the_first_answer_and_cancels_the_slow_attempt(
    peer: Peer,
) -> None:
    async def slow_first(*arguments: object) -> ListSeenResponse:
        first = peer.servicer.calls == 1
        return await (peer.servicer.never if first else peer.servicer.at_once)(*arguments)

    peer.servicer.answer = slow_first
    await peer.ask(hedge_after_s=0.05)
    clients, servers = await peer.ended(2, 2)
    by_attempt = sorted(
        clients, key=lambda s: int(str(attribute(s, "feed.rpc.previous_attempts") or 0))
    )
    assert [told(client) for client in by_attempt] == [failed("CANCELLED"), fine()]
    by_parent = {server.parent.span_id: server for server in servers if server.parent}
    pairs = [by_parent[client.context.span_id] for client in by_attempt]
    assert [told(server) for server in pairs] == [fine("CANCELLED"), fine()]


async def test_a_hedged_call_goes_on_when_one_attempt_fails(peer: Peer) -> None:
    async def first_fails_late(*arguments: object) -> ListSeenResponse:
        if peer.servicer.calls == 1:
            await asyncio.sleep(0.1)
            raise errors.Unavailable("gone")
        await asyncio.sleep(0.2)
        return ListSeenResponse()

    peer.servicer.answer = first_fails_late
    await peer.ask(hedge_after_s=0.05, limit=2)
    clients, _ = await peer.ended(2, 2)
    assert sorted(str(told(client)[0]) for client in clients) == ["OK", "UNAVAILABLE"]


async def test_a_method_that_is_not_there_is_the_clients_error(peer: Peer) -> None:
    async with open_channel(f"127.0.0.1:{peer.port}") as channel:
        method = channel.unary_unary(
            "/feed.v1.FilterService/Nothing",
            request_serializer=ListSeenRequest.SerializeToString,
            response_deserializer=ListSeenResponse.FromString,
        )
        with pytest.raises(errors.FeedError):
            await call(method, ListSeenRequest(), timeout=5)
    [span] = peer.spans.get_finished_spans()
    assert told(span) == failed("UNIMPLEMENTED")


async def test_baggage_and_tracestate_reach_the_servicer_and_go_on_from_there(
    peer: Peer,
) -> None:
    seen: dict[str, str] = {}

    async def look(*_: object) -> ListSeenResponse:
        seen.update(telemetry.inject())
        return ListSeenResponse()

    peer.servicer.answer = look
    headers = {
        "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
        "tracestate": "vendor=value",
        "baggage": "experiment=blue",
    }
    token = context.attach(telemetry.extract(headers))
    try:
        await peer.ask()
    finally:
        context.detach(token)
    _, server = await peer.only()
    assert seen["traceparent"].split("-")[1:3] == ["ab" * 16, f"{server.context.span_id:016x}"]
    assert seen["tracestate"] == "vendor=value"
    assert seen["baggage"] == "experiment=blue"


async def test_a_span_with_a_context_of_its_own_has_that_contexts_baggage() -> None:
    carried = telemetry.extract({"baggage": "experiment=blue"})
    with telemetry.span("outer", context=carried):
        assert baggage.get_baggage("experiment") == "blue"
    assert baggage.get_baggage("experiment") is None


async def test_fifty_concurrent_calls_do_not_mix_their_traces(peer: Peer) -> None:
    async def one(number: int) -> int:
        with telemetry.span(f"ask {number}", context=context.Context()) as root:
            await peer.ask()
            return root.get_span_context().trace_id

    traces = await asyncio.gather(*(one(number) for number in range(50)))
    assert len(set(traces)) == 50
    await peer.ended(50, 50)
    spans = peer.spans.get_finished_spans()
    for trace_id in traces:
        own = [span for span in spans if span.context.trace_id == trace_id]
        assert len(own) == 4
        assert not orphans(own)


def orphans(spans: Sequence[ReadableSpan]) -> list[str]:
    known = {span.context.span_id for span in spans}
    return [s.name for s in spans if s.parent is not None and s.parent.span_id not in known]


async def test_an_unsampled_call_leaves_no_span_but_carries_its_context(peer: Peer) -> None:
    unsampled = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    seen: dict[str, str] = {}

    async def look(*_: object) -> ListSeenResponse:
        seen.update(telemetry.inject())
        return ListSeenResponse()

    peer.servicer.answer = look
    with trace.use_span(unsampled):
        await peer.ask()
    assert not peer.spans.get_finished_spans()
    assert seen["traceparent"].startswith(f"00-{1:032x}-")
    assert seen["traceparent"].endswith("-00")
