"""Traces of `make run` with nothing installed: asked for, drawn and checked."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from cli.trace_rules import violations
from mesh import otlp
from tests.eventually import eventually
from tests.fixtures.installation import Installation


@pytest.fixture(scope="module")
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("traces") / "data", FEED_DEBUG_TRACES="50")
    await installation.start()
    yield installation
    await installation.stop()


@pytest.fixture(scope="module")
async def posted(installation: Installation) -> str:
    """The id of a post's trace, which is whole."""
    author = await installation.sign_up("author")
    answer = await installation.client.post(
        "/post", json={"text": "follow this through the processes"}, headers=author.headers
    )
    assert answer.status_code == 201, answer.text
    trace_id = answer.headers["traceresponse"].split("-")[1]

    async def whole() -> bool:
        spans = await trace(installation, trace_id)
        done = {
            span.attributes.get("messaging.consumer.group.name")
            for span in spans
            if span.name == "process feed.posts.v1"
        }
        assert done >= {"embedding", "fanout"}
        assert [span.name for span in otlp.tops(spans)] == ["POST /post"]
        assert {"gateway", "workers", "vectors"} <= {span.service for span in spans}
        return True

    await eventually(whole, within_s=60)
    return trace_id


async def trace(installation: Installation, trace_id: str) -> list[otlp.Span]:
    answer = await installation.client.get(f"/debug/traces/{trace_id}")
    assert answer.status_code == 200, answer.text
    return otlp.read(otlp.from_json(answer.json()))


async def command(installation: Installation, *arguments: str) -> Result:
    """`feedmesh trace` of the installation."""
    together = ["trace", *arguments, "--url", installation.url]
    # It blocks; the installation is of other processes.
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, together, env={"COLUMNS": None}))


async def test_a_posts_trace_has_the_spans_of_all_processes_and_breaks_no_rule(
    installation: Installation, posted: str
) -> None:
    spans = await trace(installation, posted)
    assert violations(spans) == []
    by_id = {span.span_id: span for span in spans}
    [stored] = [span for span in spans if span.service == "vectors"]
    above = []
    while stored.parent_id:
        stored = by_id[stored.parent_id]
        above.append((stored.service, stored.name))
    assert above == [
        ("workers", "edge.v1.VectorService/Upsert"),
        ("workers", "process feed.posts.v1"),
        ("workers", "send feed.posts.v1"),
        ("gateway", "POST /post"),
    ]


async def test_the_command_draws_it_checks_it_and_lists_it(
    installation: Installation, posted: str
) -> None:
    result = await command(installation, posted, "--wait", "--check")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    spans = await trace(installation, posted)
    assert f"trace {posted}  " in lines[0]
    assert f"  {len(spans)} spans  " in lines[0]
    assert lines[1].startswith("POST /post  ")
    for span in spans:
        assert any(span.name in line and span.service in line for line in lines)
    assert any("└ edge.v1.VectorService/Upsert" in line and "vectors" in line for line in lines)
    assert "group=fanout" in result.stdout
    assert max(map(len, lines)) <= 140
    assert "\x1b" not in result.stdout

    result = await command(installation, posted, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    read = otlp.read(otlp.from_json(json.loads(result.stdout)))
    assert {span.span_id for span in read} == {span.span_id for span in spans}

    result = await command(installation)
    assert (result.exit_code, result.stderr) == (0, "")
    [line] = [line for line in result.stdout.splitlines() if line.startswith(posted)]
    assert "POST /post" in line
    assert line.split()[-3:] == ["gateway", "workers", "vectors"]


async def test_an_unknown_trace_is_told_in_a_line(installation: Installation) -> None:
    result = await command(installation, "0" * 32)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "404: No such trace is kept" in result.stderr
    assert len(result.stderr.splitlines()) == 1


async def test_nobodys_work_makes_no_traces(installation: Installation, posted: str) -> None:
    """What runs by itself, and the asking for traces, would bury what somebody asked for."""
    items = (await installation.client.get("/debug/traces")).json()["items"]
    # The worker id's lease, the probes of the launcher and of this test, the sending of spans.
    assert not [each["name"] for each in items if "leases" in each["name"]]
    assert {each["name"] for each in items} <= {
        "POST /user", "POST /auth/token", "POST /post", "purge impressions",
        "purge idempotency keys",
    }  # fmt: skip


async def test_workers_that_lose_the_gateway_go_on_and_find_it_again(
    installation: Installation, posted: str
) -> None:
    await installation.kill("mesh")
    await eventually(installation.is_ready, within_s=60, every_s=0.1)
    author = await installation.sign_up("again")
    answer = await installation.client.post(
        "/post", json={"text": "still traced"}, headers=author.headers
    )
    trace_id = answer.headers["traceresponse"].split("-")[1]

    async def joined() -> bool:
        return {"gateway", "workers", "vectors"} <= {
            span.service for span in await trace(installation, trace_id)
        }

    await eventually(joined, within_s=60)


async def test_workers_and_vectors_have_metrics_of_their_own(installation: Installation) -> None:
    port = int(installation.env["FEED_METRICS_PORT"])
    async with httpx.AsyncClient() as client:
        workers = await client.get(f"http://127.0.0.1:{port}/metrics")
        vectors = await client.get(f"http://127.0.0.1:{port + 1}/metrics")
    assert workers.status_code == vectors.status_code == 200
    assert 'events_handled_total{group="fanout"' in workers.text
    assert 'events_handled_total{group="fanout"' not in vectors.text


async def test_the_launcher_says_how_to_see_a_trace(installation: Installation) -> None:
    said = installation.log.read_text()
    assert "feedmesh trace" in said
    assert f":{installation.env['FEED_METRICS_PORT']}/metrics" in said
