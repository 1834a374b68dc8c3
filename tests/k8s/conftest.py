"""The mesh in a cluster: `make k8s-test` brings the cluster, these fixtures the mesh.

The traces of all pods come to the tests' own collector, as the overlay's `otel-collector`.
"""

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from cli.trace_rules import violations
from mesh import otlp
from mesh.errors import Unavailable
from mesh.otlp import Span
from stack.kubernetes import network
from stack.kubernetes.kubectl import Kubectl
from tests.eventually import eventually
from tests.fixtures.otlp import OtlpReceiver
from tests.fixtures.world import People, Person
from tests.k8s.report import Report

ROOT = Path(__file__).parents[2]
OVERLAY = ROOT / "k8s" / "overlays" / "test"
NAMESPACE = "feedmesh"
GATEWAY = f"http://{network.NODE}:30080"
GRPC_SERVICES = ("candidate-svc", "filter-svc", "ranker-svc", "hydrator-svc")
SERVICES = ("gateway", *GRPC_SERVICES)
# An image is on the node already; a busy machine starts a dozen Pythons at once.
READY_WITHIN_S = 180
# Who ask for feeds at once.
READERS = 3


@dataclass
class Cluster(People):
    """The mesh that runs there.

    Attributes:
        client: Each request has a connection of its own, as of many clients.
        kubectl: In the mesh's namespace.
        collector: What the pods' traces came to.
    """

    client: httpx.AsyncClient
    kubectl: Kubectl
    collector: OtlpReceiver
    pods_seen: dict[str, float] = field(default_factory=dict)

    def spans(self, since: int = 0) -> list[Span]:
        """Those received, from the given number of messages on."""
        return otlp.read(self.collector.resource_spans[since:])

    async def sign_up(self, username: str) -> Person:
        """A new user, logged in; the name gets a part that no other run has."""
        return await super().sign_up(f"{username}{uuid4().hex[:8]}")

    async def trace(
        self, trace_id: str, complete: Callable[[Sequence[Span]], object], within_s: float = 30
    ) -> Sequence[Span]:
        """The trace, when it breaks no rule and `complete` holds.

        Each pod sends its spans in its own time, and in several messages.
        """

        def whole() -> list[Span]:
            found = [span for span in self.spans() if span.trace_id == trace_id]
            assert complete(found)
            assert violations(found) == []
            return found

        return await eventually(whole, within_s, every_s=0.2)

    def calls(self, name: str, since: int) -> Counter[str]:
        """How many requests each pod of a service has had, from that number of messages on."""
        return Counter(
            span.resource["k8s.pod.name"]
            for span in self.spans(since)
            if span.kind == "SERVER" and span.service == name.replace("-", "_")
        )

    async def pods(self, name: str | None = None) -> list[dict[str, Any]]:
        """The pods of one workload, or of all; those that are going are left out."""
        chosen = f"app.kubernetes.io/name={name}" if name else "app.kubernetes.io/part-of=feedmesh"
        found = (await self.kubectl.get("pods", "--selector", chosen))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def restarts(self) -> dict[str, int]:
        """How often containers were started again, by pod; those that never were are left out."""
        return {
            pod["metadata"]["name"]: container["restartCount"]
            for pod in await self.pods()
            for container in pod["status"]["containerStatuses"]
            if container["restartCount"]
        }

    async def settled(self, *names: str) -> None:
        """Returns when these Deployments have all their pods, of the newest template, ready."""
        for name in names:
            await self.kubectl(
                *("rollout", "status", f"deployment/{name}", f"--timeout={READY_WITHIN_S}s"),
                within_s=READY_WITHIN_S + 10,
            )
            await self.note(name)

    async def note(self, name: str) -> None:
        """Remembers how long each of its pods took from its start to being ready."""
        for pod in await self.pods(name):
            [container] = pod["status"]["containerStatuses"]
            ready = next(
                each for each in pod["status"]["conditions"] if each["type"] == "ContainersReady"
            )
            if container["restartCount"] == 0 and ready["status"] == "True":
                started = container["state"]["running"]["startedAt"]
                seconds = _time(ready["lastTransitionTime"]) - _time(started)
                self.pods_seen[pod["metadata"]["name"]] = seconds

    async def scale(self, name: str, replicas: int) -> None:
        """Returns when it has so many pods, all ready."""
        await self.kubectl("scale", f"deployment/{name}", f"--replicas={replicas}")
        await self.settled(name)

    async def page(self, reader: Person) -> httpx.Response:
        """A feed page, whatever comes."""
        return await self.client.get("/feed", headers=reader.headers)


def _time(written: str) -> float:
    return datetime.fromisoformat(written).timestamp()


_REPORT = Report()


@pytest.fixture(scope="session")
def report() -> Report:
    return _REPORT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _REPORT.pods:
        _REPORT.print({kind: len(found) for kind, found in terminalreporter.stats.items()})


@pytest.fixture(scope="session")
async def cluster(report: Report) -> AsyncIterator[Cluster]:
    """The mesh applied, prepared and ready."""
    for variable in ("FEED_TEST_KUBECTL", "KUBECONFIG"):
        assert variable in os.environ, f"{variable} is unset: run `make k8s-test`"
    kubectl = Kubectl(
        Path(os.environ["FEED_TEST_KUBECTL"]), Path(os.environ["KUBECONFIG"]), NAMESPACE
    )
    # As a cluster's client comes from outside: no connection lives longer than its request.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with (
        OtlpReceiver(network.HOST, network.COLLECTOR_PORT) as collector,
        httpx.AsyncClient(base_url=GATEWAY, timeout=30, limits=limits) as client,
    ):
        here = Cluster(client, kubectl, collector)
        await kubectl("apply", "--server-side", "--kustomize", str(OVERLAY))
        try:
            await kubectl(
                *("wait", "job/prepare", "--for=condition=complete"),
                *(f"--timeout={READY_WITHIN_S}s",),
                within_s=READY_WITHIN_S + 10,
            )
            deployments = (await kubectl.get("deployments"))["items"]
            await here.settled(*(each["metadata"]["name"] for each in deployments))
        except Unavailable:
            print(await kubectl("get", "pods", "--output", "wide"))
            print(await kubectl("get", "events", "--sort-by=.lastTimestamp"))
            raise
        yield here
        report.pods = len(await here.pods())
        report.restarts = sum((await here.restarts()).values())
        by_service = defaultdict(list)
        for pod, seconds in here.pods_seen.items():
            by_service[pod.rsplit("-", 2)[0]].append(seconds)
        report.ready_s = dict(by_service)


@pytest.fixture(scope="session")
async def reader(cluster: Cluster) -> Person:
    """Somebody whose feed has posts of followed people and of strangers."""
    reader = await cluster.sign_up("reader")
    author, stranger = await cluster.sign_up("author"), await cluster.sign_up("stranger")
    answer = await cluster.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    assert answer.status_code == 204
    await cluster.feed(reader)
    for number in range(30):
        for who in (author, stranger):
            answer = await cluster.client.post(
                "/post",
                json={"text": f"Espresso and pour-over, note {number} of {who.username}"},
                headers=who.headers,
            )
            assert answer.status_code == 201, answer.text
            if number < 3:
                # Without a taste, what strangers post is popular or nothing.
                post_id = answer.json()["post_id"]
                liked = await cluster.client.put(f"/post/{post_id}/like", headers=reader.headers)
                assert liked.status_code == 204, liked.text

    async def mixed() -> bool:
        page = await cluster.feed(reader)
        return {item["source"] for item in page["items"]} >= {"social", "discovery"}

    await eventually(mixed, within_s=60, every_s=0.5)
    return reader


@dataclass
class Load:
    """Feeds asked for all the while, by a few readers at once.

    Attributes:
        answered: How many answers there were of each kind: "200", "200 degraded", "503", or
            what kept an answer from coming.
    """

    cluster: Cluster
    reader: Person
    answered: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    async def __aenter__(self) -> "Load":
        self._askers = [asyncio.create_task(self._ask()) for _ in range(READERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for asker in self._askers:
            asker.cancel()
        await asyncio.gather(*self._askers, return_exceptions=True)

    @property
    def asked(self) -> int:
        """How many there were."""
        return sum(self.answered.values())

    @property
    def failed(self) -> dict[str, int]:
        """Those that were not answered with a page."""
        return {kind: n for kind, n in self.answered.items() if not kind.startswith("200")}

    async def more(self, count: int) -> None:
        """Returns when there have been so many more."""
        wanted = self.asked + count
        await eventually(lambda: self.asked >= wanted, within_s=120, every_s=0.1)

    async def _ask(self) -> None:
        while True:
            try:
                answer = await self.cluster.page(self.reader)
                kind = str(answer.status_code)
                if answer.status_code == 200 and answer.json()["degraded"]:
                    kind += " degraded"
            except httpx.HTTPError as error:
                kind = type(error).__name__
            self.answered[kind] += 1
            await asyncio.sleep(0.05)
