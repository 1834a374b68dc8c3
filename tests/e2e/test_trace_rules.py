"""Mixed requests, with faults: no trace breaks a rule. `make check-traces` sends 1,000 of them."""

import asyncio
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import httpx
import pytest

from cli.trace_rules import violations
from mesh.attributes import ATTRIBUTES
from mesh.otlp import Span
from tests.eventually import eventually
from tests.fixtures.mesh import Mesh, running_mesh
from tests.fixtures.world import Person

REQUESTS = int(os.environ.get("FEED_TEST_REQUESTS", "160"))
CONCURRENCY = 8
Send = Callable[["Crowd", Person], Awaitable[httpx.Response]]


@dataclass
class Crowd:
    """People who do this and that."""

    mesh: Mesh
    people: list[Person]
    chance: random.Random
    posts: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    left: int = 0

    async def act(self) -> None:
        """One request, of any kind; whatever comes of it, its trace shall be right."""
        who = self.chance.choice(self.people)
        send = self.chance.choices(list(ACTIONS), weights=list(ACTIONS.values()))[0]
        try:
            answer = await send(self, who)
        except httpx.ReadTimeout:
            self.left += 1
            return
        self.statuses.append(answer.status_code)
        if answer.status_code == 201:
            self.posts.append(answer.json()["post_id"])

    async def get(self, who: Person, path: str, **more: float | dict[str, str]) -> httpx.Response:
        return await self.mesh.client.get(path, headers=who.headers, **more)  # type: ignore[arg-type]

    async def put(self, who: Person, path: str) -> httpx.Response:
        return await self.mesh.client.put(path, headers=who.headers)

    async def delete(self, who: Person, path: str) -> httpx.Response:
        return await self.mesh.client.delete(path, headers=who.headers)

    async def send(self, who: Person, path: str, body: object) -> httpx.Response:
        return await self.mesh.client.post(path, json=body, headers=who.headers)

    def anybody(self) -> str:
        return self.chance.choice(self.people).user_id

    def any_post(self) -> str:
        return self.chance.choice(self.posts or ["1"])


async def read_two_pages(crowd: Crowd, who: Person) -> httpx.Response:
    first = await crowd.get(who, "/feed", params={"limit": "2"})
    if first.status_code != 200 or not first.json()["next_cursor"]:
        return first
    return await crowd.get(who, "/feed", params={"cursor": first.json()["next_cursor"]})


async def report_impressions(crowd: Crowd, who: Person) -> httpx.Response:
    items = [{"post_id": crowd.any_post(), "dwell_ms": 4000} for _ in range(5)]
    return await crowd.send(who, "/impressions", {"items": items})


# What is done, and how often.
ACTIONS: dict[Send, int] = {
    lambda crowd, who: crowd.get(who, "/feed"): 30,
    lambda crowd, who: crowd.get(who, "/feed", timeout=0.03): 6,
    read_two_pages: 8,
    lambda crowd, who: crowd.send(who, "/post", {"text": "Something about bread."}): 14,
    lambda crowd, who: crowd.put(who, f"/user/{crowd.anybody()}/follow"): 6,
    lambda crowd, who: crowd.put(who, f"/post/{crowd.any_post()}/like"): 10,
    report_impressions: 8,
    lambda crowd, who: crowd.get(who, f"/post/{crowd.any_post()}"): 5,
    lambda crowd, who: crowd.get(who, f"/user/{crowd.anybody()}/posts"): 3,
    lambda crowd, who: crowd.delete(who, f"/post/{crowd.any_post()}"): 4,
    # What is wrong in its own way each.
    lambda crowd, who: crowd.send(who, "/post", {"text": 7}): 2,
    lambda crowd, who: crowd.get(who, "/feed", params={"cursor": "made-up"}): 2,
    lambda crowd, who: crowd.get(replace(who, headers={}), "/feed"): 2,
    lambda crowd, who: crowd.get(who, "/no/such/path"): 2,
}  # fmt: skip


async def trouble(mesh: Mesh, done: Callable[[], int]) -> None:
    """One fault after another, each for a twentieth of the requests, as long as there are any."""
    step = max(REQUESTS // 20, 1)
    pid = mesh.valkey.pid
    assert pid is not None
    for number in range(1, 18, 2):
        await eventually(lambda at=number * step: done() >= at, within_s=120)  # type: ignore[misc]
        after = (number + 1) * step
        match number % 8:
            case 1:
                await mesh.stop("vectors")
                await _reached(done, after)
                await mesh.start("vectors")
            case 3:
                mesh.pause("ranker")
                await _reached(done, after)
                mesh.resume("ranker")
            case 5:
                await mesh.stop("filter", "consumers")
                await _reached(done, after)
                await mesh.start("filter", "consumers")
            case _:
                os.kill(pid, signal.SIGSTOP)
                await _reached(done, min(after, number * step + CONCURRENCY))
                os.kill(pid, signal.SIGCONT)


async def _reached(done: Callable[[], int], count: int) -> None:
    await eventually(lambda: done() >= count, within_s=120)


@pytest.fixture(scope="module")
async def traces() -> AsyncIterator[list[Span]]:
    """All spans of the mixed requests, when no more are to come."""
    async with running_mesh(FEED_RECALL_SAMPLE="0.2", FEED_FEED_DEADLINE_S="2") as mesh:
        people = [await mesh.sign_up(f"person{number}") for number in range(10)]
        crowd = Crowd(mesh, people, random.Random(11))
        done = 0
        todo = iter(range(REQUESTS))

        async def person() -> None:
            nonlocal done
            for _ in todo:
                await crowd.act()
                done += 1

        faults = asyncio.create_task(trouble(mesh, lambda: done))
        await asyncio.gather(*(person() for _ in range(CONCURRENCY)))
        await faults
        assert {200, 201, 204, 401, 404, 422} <= set(crowd.statuses)
        assert crowd.left

        def settled() -> list[Span]:
            spans = mesh.all_spans()
            found = violations(spans)
            assert not found, "\n".join(found[:20])
            return spans

        spans = await eventually(settled, within_s=60, every_s=1)
        yield spans


@pytest.mark.timeout(600)
async def test_no_trace_of_mixed_requests_with_faults_breaks_a_rule(
    traces: Sequence[Span], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {span.trace_id for span in traces}
    failed = {span.trace_id for span in traces if span.status == "ERROR"}
    with capsys.disabled():
        print(
            f"\n{REQUESTS} requests, {len(kept)} traces, {len(traces)} spans, "
            f"{len(failed)} traces with errors in them: {len(violations(traces))} violations"
        )
    assert len(failed) > 3
    assert len(kept) > REQUESTS / 2


@pytest.mark.timeout(600)
async def test_the_checker_finds_a_span_that_was_broken(traces: Sequence[Span]) -> None:
    by_trace: dict[str, list[Span]] = {}
    for span in traces:
        by_trace.setdefault(span.trace_id, []).append(span)
    feed = next(t for t in by_trace.values() if any(s.name == "stage ranker" for s in t))
    [stage] = [s for s in feed if s.name == "stage ranker"]
    others = [s for s in feed if s is not stage]
    assert not violations(feed)
    broken = {
        "lost": others,
        "never ended": [*others, replace(stage, end_ns=0)],
        "failed without a reason": [*others, replace(stage, status="ERROR", attributes={})],
        "a second root": [*others, replace(stage, parent_id="")],
        "in the wrong trace": [*others, replace(stage, trace_id="ab" * 16)],
        "set to OK": [*others, replace(stage, status="OK")],
    }
    assert [name for name, spans in broken.items() if not violations(spans)] == []


@pytest.mark.timeout(600)
async def test_what_spans_say_of_feeds_is_in_the_table(traces: Sequence[Span]) -> None:
    patterns = [
        re.compile(re.sub(r"<\w+>", "[a-z_]+", name.replace(".", r"\.")))
        for attribute in ATTRIBUTES
        for name in attribute.name.split(", ")
    ]
    said = {
        name for span in traces for name in span.attributes if name.startswith(("feed.", "user."))
    }
    assert {n for n in said if not any(p.fullmatch(n) for p in patterns)} == set()
    assert len(said) > len(patterns) / 2
