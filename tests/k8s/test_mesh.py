"""The mesh as Kubernetes runs it: feeds, traces, rollouts, losses, scale and policies."""

import asyncio
import io
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from PIL import Image

from mesh.errors import Unavailable
from mesh.otlp import Span
from tests.eventually import eventually
from tests.fixtures.world import Person
from tests.k8s.conftest import GRPC_SERVICES, OVERLAY, SERVICES, Cluster, Load
from tests.k8s.report import Report

pytestmark = pytest.mark.k8s
WORKERS = ("worker-fanout", "worker-embedding", "worker-features", "worker-log", "worker-relay")


async def test_every_pod_is_ready_and_none_was_started_twice(
    cluster: Cluster, report: Report
) -> None:
    pods = await cluster.pods()
    running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
    assert {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in running} == {
        *SERVICES,
        *WORKERS,
    }
    for pod in running:
        [container] = pod["status"]["containerStatuses"]
        assert container["ready"], pod["metadata"]["name"]
    assert await cluster.restarts() == {}
    report.checks.append(f"{len(running)} pods ready, none restarted")


async def test_the_job_may_be_repeated(cluster: Cluster) -> None:
    await cluster.kubectl("delete", "job", "prepare")
    await cluster.kubectl("apply", "--server-side", "--kustomize", str(OVERLAY))
    await cluster.kubectl("wait", "job/prepare", "--for=condition=complete", "--timeout=90s")
    printed = await cluster.kubectl("logs", "job/prepare")
    assert "database: the newest schema" in printed


async def test_a_feed_has_what_was_posted_a_moment_ago_with_its_picture(
    cluster: Cluster,
) -> None:
    author, follower = await cluster.sign_up("ada"), await cluster.sign_up("ben")
    await cluster.client.put(f"/user/{author.user_id}/follow", headers=follower.headers)
    await cluster.feed(follower)
    picture = io.BytesIO()
    Image.new("RGB", (320, 200), (200, 90, 40)).save(picture, "JPEG")
    posted = await cluster.client.post(
        "/post",
        data={"text": "Look at this sunset"},
        files={"media": ("sunset.jpg", picture.getvalue(), "image/jpeg")},
        headers=author.headers,
    )
    assert posted.status_code == 201, posted.text

    async def shown() -> dict[str, Any]:
        items = (await cluster.feed(follower))["items"]
        return next((item for item in items if item["post_id"] == posted.json()["post_id"]), {})

    item = await eventually(shown, within_s=30, every_s=0.2)
    assert item["source"] == "social"
    async with httpx.AsyncClient(timeout=20) as client:
        download = await client.get(item["media"][0]["url"])
    with Image.open(io.BytesIO(download.content)) as image:
        assert image.size == (320, 200)


async def test_a_feeds_trace_is_whole_across_five_pods(
    cluster: Cluster, reader: Person, report: Report
) -> None:
    async def whole_page() -> dict[str, Any]:
        page = await cluster.feed(reader)
        assert page["degraded"] == []
        return page

    page = await eventually(whole_page, within_s=60, every_s=0.5)
    # The services, and the vector engine beside the cluster.
    spans = await cluster.trace(
        page["trace_id"], lambda spans: len({span.service for span in spans}) >= 6
    )
    pods = {span.service: span.resource.get("k8s.pod.name") for span in spans}
    of_services = {pods[name.replace("-", "_")] for name in SERVICES}
    assert None not in of_services
    assert len(of_services) == 5
    report.checks.append(
        f"trace {page['trace_id']}: {len(spans)} spans, whole, of the pods "
        + ", ".join(sorted(filter(None, pods.values())))
    )


async def test_a_posts_trace_goes_on_in_the_workers_pods(cluster: Cluster) -> None:
    author = await cluster.sign_up("traced")
    answer = await cluster.client.post("/post", json={"text": "seen"}, headers=author.headers)
    trace_id = answer.headers["traceresponse"].split("-")[1]

    def worked(spans: Sequence[Span]) -> bool:
        groups = {span.attributes.get("messaging.consumer.group.name") for span in spans}
        return groups >= {"fanout", "embedding"}

    await cluster.trace(trace_id, worked, within_s=60)


async def test_calls_spread_over_three_replicas_within_a_minute_of_scaling(
    cluster: Cluster, reader: Person, report: Report
) -> None:
    before = time.monotonic()
    await cluster.kubectl("scale", "deployment/candidate-svc", "--replicas=3")
    since = len(cluster.collector.resource_spans)

    async with Load(cluster, reader) as load:
        await eventually(
            lambda: len(cluster.calls("candidate-svc", since)) == 3, within_s=60, every_s=0.5
        )
        seconds = time.monotonic() - before
        await cluster.settled("candidate-svc")
        since = len(cluster.collector.resource_spans)
        await load.more(300)
        await eventually(
            lambda: cluster.calls("candidate-svc", since).total() >= 300, within_s=30, every_s=0.5
        )
    calls = cluster.calls("candidate-svc", since)
    shares = [count / calls.total() for count in calls.values()]
    assert len(shares) == 3
    assert min(shares) >= 0.20
    assert max(shares) <= 0.47
    assert not load.failed
    report.checks.append(
        f"3 replicas of candidate_svc all had calls {seconds:.0f} s after the command; then "
        f"{calls.total()} calls were spread {', '.join(f'{share:.0%}' for share in shares)}"
    )
    await cluster.scale("candidate-svc", 1)


@pytest.mark.parametrize("names", [*((name,) for name in SERVICES), WORKERS], ids=" ".join)
async def test_an_update_fails_no_request(
    cluster: Cluster, reader: Person, report: Report, names: Sequence[str]
) -> None:
    old = {pod["metadata"]["name"] for name in names for pod in await cluster.pods(name)}
    async with Load(cluster, reader) as load:
        await load.more(10)
        for name in names:
            await cluster.kubectl("rollout", "restart", f"deployment/{name}")
        await cluster.settled(*names)
        await eventually(lambda: _gone(cluster, old), within_s=60, every_s=0.3)
        await load.more(20)
    report.asked += load.asked
    report.failed += sum(load.failed.values())
    report.checks.append(f"update of {', '.join(names)}: {_said(load)}")
    assert not load.failed


async def _gone(cluster: Cluster, pods: set[str]) -> bool:
    there = (await cluster.kubectl.get("pods"))["items"]
    return not pods & {pod["metadata"]["name"] for pod in there}


@pytest.mark.parametrize("name", SERVICES)
async def test_a_pod_that_is_killed_is_missed_by_few_and_not_for_long(
    cluster: Cluster, reader: Person, report: Report, name: str
) -> None:
    await cluster.scale(name, 2)
    victim, _ = await cluster.pods(name)
    since = len(cluster.collector.resource_spans)
    async with Load(cluster, reader) as load:
        # Both work: one that nobody has called yet is missed by nobody.
        await eventually(lambda: len(cluster.calls(name, since)) == 2, within_s=60, every_s=0.5)
        await cluster.kubectl(
            *("delete", "pod", victim["metadata"]["name"], "--grace-period=0", "--force")
        )
        await load.more(30)
        during = dict(load.answered)
        await cluster.settled(name)
        await asyncio.wait_for(load.more(30), 60)
    if name != "gateway":
        # What was under way there is asked of the other, or left out of the page.
        assert not load.failed
    after = {kind: n - during.get(kind, 0) for kind, n in load.answered.items()}
    assert after.get("200", 0) >= 20
    report.checks.append(f"a pod of {name} killed: {_said(load)}")
    await cluster.scale(name, 1)


def _said(load: Load) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(load.answered.items()))
    return f"{sum(load.failed.values())} of {load.asked} requests failed ({kinds})"


REACH = "import socket; socket.create_connection(('{host}', {port}), 3)"


@pytest.mark.parametrize("name", GRPC_SERVICES)
async def test_only_the_gateway_reaches_a_service(
    cluster: Cluster, report: Report, name: str
) -> None:
    service = await cluster.kubectl.get("service", name)
    code = REACH.format(host=name, port=service["spec"]["ports"][0]["port"])
    await cluster.kubectl("exec", "deployment/gateway", "--", "python3", "-c", code)
    with pytest.raises(Unavailable, match=r"TimeoutError|timed out|refused"):
        await cluster.kubectl("exec", "deployment/worker-relay", "--", "python3", "-c", code)
    report.checks.append(f"the gateway's pod reaches {name}, a worker's is kept from it")


async def test_in_the_end_no_container_was_started_twice(cluster: Cluster) -> None:
    assert await cluster.restarts() == {}
