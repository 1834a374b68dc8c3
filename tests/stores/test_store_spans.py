"""What operations of stores leave in traces and metrics, however they end."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode
from prometheus_client.registry import REGISTRY
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeout
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError

from mesh import deadlines, metrics, redis_spans, sql_spans, telemetry
from mesh.errors import Unavailable
from mesh.redis_spans import LuaScript
from stores.events.port import Topic
from stores.events.redis import RedisEventLog
from stores.redis_client import open_redis
from stores.sql.database import Database
from stores.sql.tables import pulled_authors, users
from tests.fixtures.spans import service
from tests.fixtures.sql import fresh_id
from tests.fixtures.valkey import free_port

# Takes long enough to be cancelled in the middle.
SLOW = text(
    "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 2000000)"
    " SELECT count(*) FROM n"
)


@pytest.fixture(scope="session")
def sql_url(sqlite: str) -> str:
    return sqlite


@pytest_asyncio.fixture(scope="session")
async def database(sql_url: str) -> AsyncIterator[Database]:
    db = Database(sql_url)
    yield db
    await db.close()


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Redis]:
    """A client that is connected: connecting is part of the first command."""
    client = open_redis(valkey_url)
    with suppress_instrumentation():
        await client.set("feed:{connected}", "")
    yield client
    await client.aclose()


async def send(client: Any, *command: object) -> Any:
    return await client.execute_command(*command)


def operations(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    """The finished CLIENT spans of no service, in the order in which they began.

    Services of other tests may be at work in this process.
    """
    finished = spans.get_finished_spans()
    found = [s for s in finished if s.kind is SpanKind.CLIENT and service(s) == telemetry.SCOPE]
    return sorted(found, key=lambda span: span.start_time or 0)


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    [span] = operations(spans)
    return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def outcome(span: ReadableSpan) -> tuple[StatusCode, object, object]:
    found = attributes(span)
    return (
        span.status.status_code,
        found.get("error.type"),
        found.get("db.response.status_code"),
    )


SUCCESS = (StatusCode.UNSET, None, None)
CANCELLED = (StatusCode.ERROR, "CANCELLED", None)


@contextmanager
def unsampled() -> Iterator[None]:
    """Within it, the trace is one that is not kept."""
    parent = NonRecordingSpan(SpanContext(trace_id=1, span_id=1, is_remote=False))
    token = context.attach(trace.set_span_in_context(parent))
    try:
        yield
    finally:
        context.detach(token)


def count(system: str, operation: str, error_type: str = "") -> float:
    """How many of these operations are in the metric."""
    labels = {
        "db_system_name": system,
        "db_operation_name": operation,
        "error_type": error_type,
    }
    return REGISTRY.get_sample_value("db_client_operation_duration_seconds_count", labels) or 0


# -- Redis: what spans say ----------------------------------------------------------------------


async def test_a_command_says_what_it_does_to_which_keys(
    client: Redis, spans: InMemorySpanExporter
) -> None:
    await client.zrevrange("mailbox:{42}", 0, 100)
    span = only(spans)
    kwargs = client.connection_pool.connection_kwargs
    assert span.name == "ZREVRANGE mailbox"
    assert attributes(span) == {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": "ZREVRANGE",
        "db.query.summary": "ZREVRANGE mailbox",
        "db.query.text": "ZREVRANGE mailbox:? ?",
        "server.address": kwargs["host"],
        "server.port": kwargs["port"],
    }
    assert outcome(span) == SUCCESS


@pytest.mark.parametrize(
    ("transaction", "commands", "name", "operation", "query"),
    [
        pytest.param(
            False,
            [("HGET", "feature:post:{1}", "a"), ("HGET", "feature:post:{2}", "a")],
            "PIPELINE HGET feature:post",
            "PIPELINE HGET",
            "HGET feature:post:? ?",
            id="of one kind",
        ),
        pytest.param(
            False,
            [("GET", "feed:{1}"), ("ECHO", "alice"), ("ZCARD", "popular")],
            "PIPELINE",
            "PIPELINE",
            "GET feed:?; ECHO ?; ZCARD popular",
            id="of several kinds",
        ),
        pytest.param(
            True,
            [("DEL", "seen:{1}"), ("EXPIRE", "seen:{1}", 9)],
            "MULTI seen",
            "MULTI",
            "DEL seen:?; EXPIRE seen:? ?",
            id="as a transaction",
        ),
        pytest.param(
            False, [("GET", "feed:{1}")], "GET feed", "GET", "GET feed:?", id="of one command"
        ),
    ],
)
async def test_a_pipeline_is_one_span(
    client: Redis,
    spans: InMemorySpanExporter,
    transaction: bool,
    commands: list[tuple[Any, ...]],
    name: str,
    operation: str,
    query: str,
) -> None:
    async with client.pipeline(transaction=transaction) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        await pipe.execute()
    span = only(spans)
    assert span.name == attributes(span)["db.query.summary"] == name
    assert attributes(span)["db.operation.name"] == operation
    assert attributes(span)["db.query.text"] == query
    size = len(commands) if len(commands) > 1 else None
    assert attributes(span).get("db.operation.batch.size") == size


async def test_an_empty_pipeline_is_no_operation(
    client: Redis, spans: InMemorySpanExporter
) -> None:
    async with client.pipeline() as pipe:
        assert await pipe.execute() == []
    assert operations(spans) == []


async def test_a_watched_read_is_a_span_of_its_own(
    client: Redis, spans: InMemorySpanExporter
) -> None:
    async with client.pipeline() as pipe:
        await pipe.watch("feed:{1}")
        await pipe.get("feed:{1}")
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.delete("feed:{1}")
        pipe.delete("feed:{1}")
        await pipe.execute()
    assert [span.name for span in operations(spans)] == [
        "WATCH feed", "GET feed", "MULTI DEL feed",
    ]  # fmt: skip


async def test_a_script_is_called_what_it_does(client: Redis, spans: InMemorySpanExporter) -> None:
    script = LuaScript("greet people", "return ARGV[1]")
    assert await client.eval(script, 1, "mailbox:{42}", "alice") == b"alice"  # type: ignore[misc]
    span = only(spans)
    assert span.name == "EVAL greet people"
    assert attributes(span)["db.stored_procedure.name"] == "greet people"
    assert attributes(span)["db.query.text"] == "EVAL ? mailbox:? ?"


# Every other character of what is personal is one that nothing else has.
MARK = "§"
PERSONAL = st.text(min_size=1).map(lambda text: MARK + MARK.join(text) + MARK)


@settings(max_examples=50, deadline=None)
@given(PERSONAL, PERSONAL, PERSONAL)
async def test_nothing_of_keys_and_values_is_in_spans(
    redis_client: Redis, every_span: InMemorySpanExporter, key: str, value: str, other: str
) -> None:
    every_span.clear()
    await redis_client.set(f"mailbox:{{{key}}}", value)
    await redis_client.set(key, value)
    await send(redis_client, "ECHO", other)
    await redis_client.eval(LuaScript("say", "return 1"), 1, key, value, other)  # type: ignore[misc]
    with pytest.raises(ResponseError):
        await send(redis_client, "LPUSH", f"mailbox:{{{key}}}", value, other)
    with pytest.raises(ResponseError):
        await send(redis_client, "NO-SUCH", value, other)
    async with redis_client.pipeline(transaction=False) as pipe:
        pipe.get(f"mailbox:{{{key}}}")
        pipe.lpush(f"mailbox:{{{key}}}", value, other)
        with pytest.raises(ResponseError):
            await pipe.execute()
    finished = operations(every_span)
    assert len(finished) == 7
    said = json.dumps([json.loads(span.to_json()) for span in finished], ensure_ascii=False)
    assert MARK not in said


# -- Redis: how spans end -----------------------------------------------------------------------


async def test_a_servers_error_is_its_prefix(client: Redis, spans: InMemorySpanExporter) -> None:
    await client.set("feed:{wrong}", "a string")
    with pytest.raises(ResponseError):
        await send(client, "LPUSH", "feed:{wrong}", "alice")
    with pytest.raises(ResponseError):
        await send(client, "NO-SUCH", "alice")
    _, wrong_type, unknown = operations(spans)
    assert outcome(wrong_type) == (StatusCode.ERROR, "WRONGTYPE", "WRONGTYPE")
    assert outcome(unknown) == (StatusCode.ERROR, "ERR", "ERR")


async def test_a_pipeline_with_a_command_that_fails_is_an_error(
    client: Redis, spans: InMemorySpanExporter
) -> None:
    async with client.pipeline(transaction=False) as pipe:
        pipe.set("feed:{wrong}", "a string")
        pipe.lpush("feed:{wrong}", "alice")
        pipe.get("feed:{wrong}")
        with pytest.raises(ResponseError) as caught:
            await pipe.execute()
    assert "alice" not in str(caught.value)
    assert outcome(only(spans)) == (StatusCode.ERROR, "WRONGTYPE", "WRONGTYPE")


async def test_a_server_that_is_away_is_an_error(spans: InMemorySpanExporter) -> None:
    away = open_redis(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(RedisConnectionError):
        await away.get("feed:{1}")
    # redis-py has tried twice; its caller has asked once.
    assert outcome(only(spans)) == (StatusCode.ERROR, "ConnectionError", None)


async def test_a_server_that_hangs_is_an_error(
    silent_redis_url: str, spans: InMemorySpanExporter
) -> None:
    hanging = open_redis(silent_redis_url)
    with pytest.raises(RedisTimeout):
        await hanging.get("feed:{1}")
    assert outcome(only(spans)) == (StatusCode.ERROR, "TimeoutError", None)
    await hanging.aclose()


@pytest.mark.parametrize("by", ["the caller's end", "a deadline"])
async def test_a_cancelled_command_is_an_error(
    silent_redis_url: str, spans: InMemorySpanExporter, by: str
) -> None:
    hanging = open_redis(silent_redis_url)
    command = asyncio.create_task(hanging.get("feed:{1}"))  # type: ignore[arg-type]
    if by == "a deadline":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await command
    else:
        await asyncio.wait({command}, timeout=0.05)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
    assert outcome(only(spans)) == CANCELLED
    await hanging.aclose()


# -- Redis: where spans are ---------------------------------------------------------------------


async def test_commands_of_concurrent_requests_are_below_their_own(
    client: Redis, spans: InMemorySpanExporter
) -> None:
    spans_of = uuid4().hex

    async def request(number: int) -> None:
        with telemetry.span(f"{spans_of} {number}"):
            for _ in range(3):
                await client.set("feed:{shared}", number)
                async with client.pipeline(transaction=False) as pipe:
                    pipe.get("feed:{shared}")
                    pipe.get("feed:{shared}")
                    await pipe.execute()

    await asyncio.gather(*map(request, range(50)))
    assert_each_request_has(spans, spans_of, 50, {"SET feed": 3, "PIPELINE GET feed": 3})


def assert_each_request_has(
    spans: InMemorySpanExporter, spans_of: str, requests: int, expected: dict[str, int]
) -> None:
    parents = {
        span.context.span_id: span
        for span in spans.get_finished_spans()
        if span.name.startswith(spans_of) and span.context
    }
    assert len(parents) == requests
    for parent in parents.values():
        names: dict[str, int] = {}
        for span in operations(spans):
            if span.parent and parent.context and span.parent.span_id == parent.context.span_id:
                assert (parent.start_time or 0) <= (span.start_time or 0)
                assert (span.end_time or 0) <= (parent.end_time or 0)
                names[span.name] = names.get(span.name, 0) + 1
        assert names == expected


async def test_waiting_for_events_is_no_work_of_a_request(
    client: Redis, spans: InMemorySpanExporter
) -> None:
    subscription = await RedisEventLog(client).subscribe(f"group{fresh_id()}", [Topic.GRAPH])
    while await subscription.read(100, 0):
        pass
    spans.clear()
    with telemetry.span("request"):
        assert await subscription.read(10, 0.1) == []
    assert {span.name for span in operations(spans)} == {"EVAL read events"}
    await subscription.close()


async def test_a_command_of_a_trace_that_is_not_kept_is_only_timed(
    client: Redis, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def family(*_: object) -> str:
        raise AssertionError("somebody looked at a key")

    monkeypatch.setattr(redis_spans._Commands, "_family", family)
    before = count("redis", "GET"), count("redis", "PIPELINE GET")
    with unsampled():
        await client.get("feed:{1}")
        async with client.pipeline(transaction=False) as pipe:
            pipe.get("feed:{1}")
            pipe.get("feed:{2}")
            await pipe.execute()
    assert operations(spans) == []
    assert (count("redis", "GET"), count("redis", "PIPELINE GET")) == (before[0] + 1, before[1] + 1)
    with pytest.raises(AssertionError, match="looked at a key"):
        await client.get("feed:{1}")


async def test_suppressed_operations_leave_nothing(
    client: Redis, database: Database, spans: InMemorySpanExporter
) -> None:
    before = count("redis", "GET"), count("sqlite", "SELECT")
    with suppress_instrumentation():
        await client.get("feed:{1}")
        async with database.transaction() as connection:
            await connection.execute(select(pulled_authors))
    assert spans.get_finished_spans() == ()
    assert (count("redis", "GET"), count("sqlite", "SELECT")) == before


async def test_durations_lead_to_traces(client: Redis, spans: InMemorySpanExporter) -> None:
    before = count("redis", "LPUSH", "WRONGTYPE")
    with telemetry.span("request") as request:
        await client.set("feed:{wrong}", "a string")
        with pytest.raises(ResponseError):
            await send(client, "LPUSH", "feed:{wrong}", "alice")
    assert count("redis", "LPUSH", "WRONGTYPE") == before + 1
    trace_id = trace.format_trace_id(request.get_span_context().trace_id)
    lines = metrics.exposition().decode().splitlines()
    assert [line for line in lines if 'error_type="WRONGTYPE"' in line and trace_id in line]


# -- SQL ----------------------------------------------------------------------------------------


async def test_a_transaction_is_seen_from_its_beginning_to_its_commit(
    database: Database, spans: InMemorySpanExporter
) -> None:
    number = fresh_id()
    before = count("sqlite", "COMMIT")
    async with database.transaction() as connection:
        await connection.execute(insert(pulled_authors), {"author_id": number})
        await connection.execute(
            select(func.count())
            .select_from(pulled_authors)
            .join(users, users.c.user_id == pulled_authors.c.author_id)
        )
    begin, write, read, commit = operations(spans)
    assert [begin.name, write.name, read.name, commit.name] == [
        "BEGIN", "INSERT pulled_authors", "SELECT pulled_authors users", "COMMIT",
    ]  # fmt: skip
    assert attributes(write) == {
        "db.system.name": "sqlite",
        "db.operation.name": "INSERT",
        "db.collection.name": "pulled_authors",
        "db.query.summary": "INSERT pulled_authors",
        "db.query.text": "INSERT INTO pulled_authors (author_id) VALUES (?)",
    }
    assert "db.collection.name" not in attributes(read)
    assert attributes(commit) == {
        "db.system.name": "sqlite",
        "db.operation.name": "COMMIT",
        "db.query.summary": "COMMIT",
    }
    assert {outcome(span) for span in (begin, write, read, commit)} == {SUCCESS}
    assert count("sqlite", "COMMIT") == before + 1


async def test_several_rows_are_a_batch_and_one_is_not(
    database: Database, spans: InMemorySpanExporter
) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            insert(pulled_authors), [{"author_id": fresh_id()} for _ in range(3)]
        )
        await connection.execute(insert(pulled_authors), [{"author_id": fresh_id()}])
    _, several, one, _ = operations(spans)
    assert several.name == "BATCH INSERT pulled_authors"
    assert attributes(several)["db.operation.name"] == "BATCH INSERT"
    assert attributes(several)["db.operation.batch.size"] == 3
    assert one.name == "INSERT pulled_authors"
    assert "db.operation.batch.size" not in attributes(one)


async def test_an_error_says_the_databases_code_and_nobodys_data(
    database: Database, spans: InMemorySpanExporter
) -> None:
    number = fresh_id()

    async def add() -> None:
        async with database.transaction() as connection:
            await connection.execute(insert(pulled_authors), {"author_id": number})

    await add()
    spans.clear()
    with pytest.raises(IntegrityError) as caught, telemetry.span("request"):
        await add()
    assert str(number) not in str(caught.value)
    _, failed, rollback = operations(spans)
    code = "SQLITE_CONSTRAINT_PRIMARYKEY"
    assert outcome(failed) == (StatusCode.ERROR, code, code)
    assert (rollback.name, outcome(rollback)) == ("ROLLBACK", SUCCESS)
    # The request's span has the exception.
    said = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "IntegrityError" in said
    assert str(number) not in said


async def test_waiting_for_the_write_lock_is_one_span_and_no_error(
    database: Database, sql_url: str, spans: InMemorySpanExporter
) -> None:
    other = Database(sql_url)

    async def write() -> None:
        with telemetry.span("request"):
            async with database.transaction():
                pass

    async with other.transaction():
        spans.clear()
        waiting = asyncio.create_task(write())
        # SQLite gives up several times meanwhile.
        await asyncio.wait({waiting}, timeout=0.5)
    await waiting
    [request] = [span for span in spans.get_finished_spans() if span.name == "request"]
    below = [span for span in operations(spans) if span.parent == request.context]
    assert [(span.name, outcome(span)) for span in below] == [
        ("BEGIN", SUCCESS), ("COMMIT", SUCCESS),
    ]  # fmt: skip

    spans.clear()
    async with other.transaction():
        with deadlines.within(0.3), pytest.raises(Unavailable):
            await write()
    [begin] = [span for span in operations(spans) if outcome(span) != SUCCESS]
    assert (begin.name, outcome(begin)) == ("BEGIN", CANCELLED)
    await other.close()


async def test_waiting_for_a_connection_is_seen_also_when_it_is_in_vain(
    database: Database, spans: InMemorySpanExporter
) -> None:
    async def write(within_s: float) -> None:
        async with database.transaction(timeout_s=within_s):
            pass

    async with database.transaction():
        spans.clear()
        with pytest.raises(Unavailable):
            await write(0.05)
        waiting = asyncio.create_task(write(5))
        await asyncio.wait({waiting}, timeout=0.05)
    await waiting
    in_vain, waited = [s for s in spans.get_finished_spans() if s.name == "wait for a connection"]
    assert outcome(in_vain) == CANCELLED
    assert outcome(waited) == SUCCESS
    assert attributes(waited)["db.client.connection.pool.name"] == "writer"


async def test_a_cancelled_statement_ends_at_once(
    database: Database, spans: InMemorySpanExporter
) -> None:
    async def read() -> None:
        async with database.read(timeout_s=60) as connection:
            await connection.execute(SLOW)

    def seconds(span: ReadableSpan) -> float:
        return ((span.end_time or 0) - (span.start_time or 0)) / 1e9

    await read()
    whole = seconds(only(spans))
    spans.clear()
    task = asyncio.create_task(read())
    await asyncio.wait({task}, timeout=whole / 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcome(only(spans)) == CANCELLED
    assert seconds(only(spans)) < whole / 2


async def test_statements_of_concurrent_requests_are_below_their_own(
    database: Database, spans: InMemorySpanExporter
) -> None:
    spans_of = uuid4().hex

    async def request(number: int) -> None:
        with telemetry.span(f"{spans_of} {number}"):
            async with database.read() as connection:
                for _ in range(2):
                    await connection.execute(select(pulled_authors).limit(1))
            async with database.transaction() as connection:
                await connection.execute(insert(pulled_authors), {"author_id": fresh_id()})

    await asyncio.gather(*map(request, range(50)))
    expected = {"SELECT pulled_authors": 2, "BEGIN": 1, "INSERT pulled_authors": 1, "COMMIT": 1}
    assert_each_request_has(spans, spans_of, 50, expected)


async def test_a_statement_of_a_trace_that_is_not_kept_is_only_timed(
    database: Database, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(*_: object) -> None:
        raise AssertionError("somebody read the statement")

    monkeypatch.setattr(sql_spans, "_describe", describe)
    before = count("sqlite", "SELECT")
    with unsampled():
        async with database.transaction() as connection:
            await connection.execute(select(pulled_authors).limit(1))
    assert spans.get_finished_spans() == ()
    assert count("sqlite", "SELECT") == before + 1
