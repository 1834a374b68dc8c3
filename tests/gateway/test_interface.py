"""What holds for every endpoint: ids, bodies, errors, headers, spans. No backend is needed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import Depends, Request
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import BaseModel

from gateway import drafts, problems
from gateway.auth import require_json
from gateway.body_limit import MAX_BYTES, BodyLimit
from gateway.connection import while_connected
from gateway.edge import Gateway
from gateway.schemas import InId, parse_id
from mesh.errors import NotFound, ResourceExhausted, Unavailable
from mesh.ids import MAX_ID
from tests.eventually import eventually

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Body(BaseModel):
    ids: list[InId]


class Slow:
    """Work that says how it ended."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = False

    async def work(self) -> None:
        self.started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


slow = Slow()


def an_app() -> Gateway:
    app = Gateway(telemetry={"metrics": False, "logs": False, "operation_spans": False})
    app.add_middleware(BodyLimit)
    problems.install(app)

    @app.get("/thing/{thing_id}")
    async def thing(thing_id: InId) -> int:
        if thing_id == 404:
            raise NotFound("There is no such thing.")
        if thing_id == 429:
            raise ResourceExhausted("Too often.", retry_after_s=1.2)
        if thing_id == 503:
            raise Unavailable("The database does not answer.", retry_after_s=1)
        if thing_id == 500:
            raise RuntimeError("secret inside")
        return thing_id

    @app.post("/thing", dependencies=[Depends(require_json)])
    async def make(body: Body) -> int:
        return len(body.ids)

    @app.put("/thing")
    async def remake() -> None: ...

    @app.post("/draft")
    async def draft(request: Request) -> dict[str, Any]:
        read = await drafts.read(request)
        return {
            "text": read.text,
            "tags": read.tags,
            "sizes": [len(upload.data) for upload in read.media],
            "fingerprint": read.fingerprint(),
        }

    @app.get("/slow")
    async def slowly(request: Request) -> None:
        await while_connected(request, slow.work())

    return app


app = an_app()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://feed.test") as client:
        yield client


def the_server_span(spans: InMemorySpanExporter) -> ReadableSpan:
    [span] = [span for span in spans.get_finished_spans() if span.kind == SpanKind.SERVER]
    return span


def problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == problems.MEDIA_TYPE
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:feedmesh:problem:{name}"
    assert body["status"] == status
    assert body["title"]
    assert body["instance"] == answer.request.url.path
    return body


@given(st.integers(1, MAX_ID))
def test_every_id_can_be_written_and_read(number: int) -> None:
    assert parse_id(str(number)) == number


@pytest.mark.parametrize(
    "value",
    ["0", "-1", "01", "+1", "1.0", " 1", "1e3", "٣", "", "x", str(MAX_ID + 1), "9" * 400, 5],
)
def test_what_is_no_id_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be an id"):
        parse_id(value)


async def test_an_id_that_is_no_number_is_invalid_input(client: httpx.AsyncClient) -> None:
    body = problem(await client.get("/thing/abc"), 422, "invalid_argument")
    assert body["errors"] == [
        {"field": "thing_id", "message": "must be an id: a decimal string from 1 to 2^63-1"}
    ]


async def test_a_wrong_type_deep_in_a_body_is_named_by_its_path(client: httpx.AsyncClient) -> None:
    body = problem(await client.post("/thing", json={"ids": ["1", 2]}), 422, "invalid_argument")
    assert [error["field"] for error in body["errors"]] == ["ids.1"]


@pytest.mark.parametrize(
    "content", [b"{", b"\xff\xfe", b"[" * 100_000, b"", b"[" + b"9" * 5000 + b"]"]
)
@pytest.mark.parametrize("path", ["/thing", "/draft"])
async def test_a_body_that_is_not_json_is_a_bad_request(
    client: httpx.AsyncClient, path: str, content: bytes
) -> None:
    answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
    if content == b"" and path == "/thing":
        problem(answer, 422, "invalid_argument")
    elif content.startswith(b"[9"):
        assert answer.status_code in {400, 422}
    else:
        problem(answer, 400, "bad_request")


@pytest.mark.parametrize("path", ["/thing", "/draft"])
async def test_another_media_type_is_unsupported(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, content=b"<a/>", headers={"Content-Type": "text/xml"})
    problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("path", ["/thing", "/draft"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_body_too_large_is_refused_whether_its_length_is_told_or_not(
    client: httpx.AsyncClient, path: str, streamed: bool
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * (MAX_BYTES // 10)

    answer = await client.post(
        path,
        content=chunks() if streamed else b" " * (MAX_BYTES + 1),
        headers={"Content-Type": "application/json"},
    )
    problem(answer, 413, "too_large")


async def test_a_path_and_a_method_that_are_not_there_are_problems_too(
    client: httpx.AsyncClient,
) -> None:
    problem(await client.get("/nothing"), 404, "not_found")
    answer = await client.delete("/thing")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST, PUT"


async def test_when_to_try_again_is_told(client: httpx.AsyncClient) -> None:
    assert (await client.get("/thing/429")).headers["retry-after"] == "2"
    assert (await client.get("/thing/503")).headers["retry-after"] == "1"


async def test_an_unexpected_error_tells_its_trace_and_nothing_of_the_inside(
    client: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    answer = await client.get("/thing/500")
    body = problem(answer, 500, "internal")
    assert "secret" not in answer.text
    span = the_server_span(spans)
    assert body["trace_id"] == f"{span.context.trace_id:032x}"
    assert answer.headers["traceresponse"].split("-")[1] == body["trace_id"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "RuntimeError"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/thing/5", 200, StatusCode.UNSET),
        ("/thing/404", 404, StatusCode.UNSET),
        ("/thing/abc", 422, StatusCode.UNSET),
        ("/thing/503", 503, StatusCode.ERROR),
    ],
)
async def test_a_request_has_one_server_span_of_the_gateway_with_the_right_status(
    client: httpx.AsyncClient,
    spans: InMemorySpanExporter,
    path: str,
    status: int,
    code: StatusCode,
) -> None:
    answer = await client.get(path, headers={"traceparent": PARENT})
    span = the_server_span(spans)
    assert span.name == "GET /thing/{thing_id}"
    assert span.resource.attributes["service.name"] == "gateway"
    assert span.status.status_code is code
    assert span.attributes is not None
    assert span.attributes["http.route"] == "/thing/{thing_id}"
    assert span.attributes["http.request.method"] == "GET"
    assert span.attributes["http.response.status_code"] == status
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    version, trace_id, span_id, flags = answer.headers["traceresponse"].split("-")
    assert (version, trace_id, flags) == ("00", PARENT.split("-")[1], "01")
    assert span_id == f"{span.context.span_id:016x}"


async def test_a_client_that_goes_away_ends_the_work_and_every_span(
    spans: InMemorySpanExporter,
) -> None:
    gone = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if gone.is_set():
            return {"type": "http.disconnect"}
        await gone.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/slow",
        "raw_path": b"/slow",
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "server": ("feed.test", 80),
        "client": ("1.2.3.4", 5),
        "http_version": "1.1",
        "root_path": "",
    }
    request = asyncio.create_task(app(scope, receive, send))
    await asyncio.wait_for(slow.started.wait(), 5)
    gone.set()
    await asyncio.wait_for(request, 5)
    assert slow.cancelled
    span = await eventually(lambda: the_server_span(spans))
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 499


async def form(client: httpx.AsyncClient, files: Any = None, **data: Any) -> httpx.Response:
    return await client.post("/draft", data=data, files=files or {"x": (None, "")})


async def test_a_form_and_json_say_the_same(client: httpx.AsyncClient) -> None:
    said = {"text": " On bread ", "tags": ["#Baking", "bread", "baking"]}
    by_json = await client.post("/draft", json=said)
    by_form = await client.post(
        "/draft",
        data={"text": " On bread ", "tags": ["#Baking,bread", "baking"]},
        files={"media": ("", b"")},
    )
    assert by_json.json() == by_form.json()
    assert by_json.json()["text"] == "On bread"
    assert by_json.json()["tags"] == ["baking", "bread"]


async def test_media_make_a_post_without_text_and_count_in_the_fingerprint(
    client: httpx.AsyncClient,
) -> None:
    one = await client.post("/draft", files={"media": ("a.png", b"abc")})
    two = await client.post("/draft", files={"media": ("a.png", b"abd")})
    assert one.json()["sizes"] == [3]
    assert one.json()["fingerprint"] != two.json()["fingerprint"]


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"text": "x" * 5001}, "text"),
        ({"text": "  "}, "text"),
        ({}, "text"),
        ({"text": 5}, "text"),
        ({"text": "x", "tags": ["t"] * 11}, "tags"),
        ({"text": "x", "tags": ["t" * 51]}, "tags.0"),
        ({"text": "x", "tags": [" # "]}, "tags.0"),
        ({"text": "x", "tags": "t"}, "tags"),
        ({"text": "x", "txet": "x"}, "txet"),
        ({"text": "\ud800"}, "text"),
    ],
)
async def test_a_draft_against_the_rules_names_the_field(
    client: httpx.AsyncClient, said: dict[str, Any], field: str
) -> None:
    answer = await client.post(
        "/draft", content=json.dumps(said), headers={"Content-Type": "application/json"}
    )
    body = problem(answer, 422, "invalid_argument")
    assert [error["field"] for error in body["errors"]] == [field]


async def test_media_against_the_rules_are_refused(client: httpx.AsyncClient) -> None:
    five = [("media", ("a.png", b"abc"))] * 5
    problem(await client.post("/draft", files=five), 422, "invalid_argument")
    huge = {"media": ("a.mp4", b"0" * 10_000_001)}
    problem(await client.post("/draft", files=huge), 413, "too_large")
    other = {"avatar": ("a.png", b"abc")}
    problem(await client.post("/draft", files=other), 422, "invalid_argument")
    text = await client.post("/draft", files={"media": (None, "text")})
    problem(text, 422, "invalid_argument")


async def test_a_broken_form_is_a_bad_request(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/draft", content=b"junk", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    problem(answer, 400, "bad_request")
    answer = await client.post(
        "/draft", content=b"junk", headers={"Content-Type": "multipart/form-data"}
    )
    problem(answer, 400, "bad_request")
