"""The collector keeps what is worth looking at. Needs the collector: `make observability-check`."""

import asyncio
import os
import random
import re
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from tests.eventually import eventually
from tests.fixtures.otlp import OtlpReceiver

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "k8s" / "infra" / "otel-collector" / "collector.yaml"
COLLECTOR = os.environ.get("FEED_COLLECTOR", "")

pytestmark = pytest.mark.skipif(
    not COLLECTOR, reason="needs a collector, which `make observability-check` builds"
)

OF_EACH_KIND = 40
UNREMARKABLE = 4_000
KEPT_PERCENT = 10
DECISION_WAIT_S = 3


def span(trace_id: bytes, name: str, seconds: float, **more: Any) -> Span:
    now = time.time_ns()
    return Span(
        trace_id=trace_id,
        span_id=secrets.token_bytes(8),
        name=name,
        start_time_unix_nano=now - int(seconds * 1e9),
        end_time_unix_nano=now,
        **{"kind": Span.SPAN_KIND_SERVER, **more},
    )


def degraded(yes: bool) -> list[KeyValue]:
    return [KeyValue(key="feed.is_degraded", value=AnyValue(bool_value=yes))]


def trace_of(kind: str) -> list[Span]:
    """The spans of one trace, the server's first."""
    id_ = secrets.token_bytes(16)
    internal = {"kind": Span.SPAN_KIND_INTERNAL}
    match kind:
        case "error":
            failed = span(id_, "SELECT post", 0.01, kind=Span.SPAN_KIND_CLIENT)
            failed.status.code = Status.STATUS_CODE_ERROR
            return [span(id_, "GET /feed", 0.05), failed]
        case "slow":
            return [span(id_, "GET /feed", 0.6), span(id_, "stage social", 0.1, **internal)]
        case "degraded":
            return [span(id_, "GET /feed", 0.05, attributes=degraded(True))]
        case "stale":
            effect = span(id_, "process feed.posts.v1", 0.1, kind=Span.SPAN_KIND_CONSUMER)
            root = span(id_, "POST /post", 0.05)
            root.start_time_unix_nano -= int(11e9)
            root.end_time_unix_nano -= int(11e9)
            return [root, effect]
        case "post":
            # Its workers take longer than any request may; that is not a slow request.
            effect = span(id_, "process feed.posts.v1", 0.1, kind=Span.SPAN_KIND_CONSUMER)
            root = span(id_, "POST /post", 0.05)
            root.start_time_unix_nano -= int(2e9)
            root.end_time_unix_nano -= int(2e9)
            return [root, effect]
        case _:
            return [
                span(id_, "GET /feed", 0.05, attributes=degraded(False)),
                span(id_, "stage social", 0.01, **internal),
            ]


class Collector:
    """A running one, between a sender and a receiver."""

    def __init__(self, host: str, receiver: OtlpReceiver, channel: grpc.aio.Channel) -> None:
        self.receiver = receiver
        self._host = host
        self._stub: Any = trace_service_pb2_grpc.TraceServiceStub(channel)  # type: ignore[no-untyped-call]

    async def send(self, spans: Iterable[Span]) -> None:
        message = trace_service_pb2.ExportTraceServiceRequest(
            resource_spans=[ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])]
        )
        await self._stub.Export(message, timeout=10)

    async def measured(self, name: str) -> float:
        """The sum of a metric of the collector's own."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://{self._host}:8888/metrics")).text
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, values))

    def arrived(self) -> dict[bytes, set[str]]:
        """Names of the spans that came through, by trace."""
        found: dict[bytes, set[str]] = defaultdict(set)
        for _, each in self.receiver.spans():
            found[each.trace_id].add(each.name)
        return found


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    # All of 127.0.0.0/8 is this machine: an address of its own has every port free.
    host = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}"
    async with OtlpReceiver() as receiver:
        env = {
            "TRACES_ENDPOINT": receiver.grpc_endpoint,
            "COLLECTOR_HOST": host,
            "COLLECTOR_DECISION_WAIT": f"{DECISION_WAIT_S}s",
            "COLLECTOR_KEPT_PERCENT": str(KEPT_PERCENT),
        }
        with (tmp_path / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                COLLECTOR, "--config", CONFIG, env={**os.environ, **env}, stdout=log, stderr=log
            )
        try:
            async with grpc.aio.insecure_channel(f"{host}:4317") as channel:

                async def ready() -> bool:
                    assert process.returncode is None, (tmp_path / "log").read_text()
                    async with httpx.AsyncClient() as client:
                        try:
                            return (await client.get(f"http://{host}:13133")).is_success
                        except httpx.HTTPError:
                            return False

                await eventually(ready)
                yield Collector(host, receiver, channel)
        finally:
            process.terminate()
            await process.wait()


async def test_what_is_worth_looking_at_is_kept_whole_and_a_share_of_the_rest(
    collector: Collector,
) -> None:
    sent: dict[str, dict[bytes, list[Span]]] = {}
    for kind in ("error", "slow", "degraded", "stale", "post", "fine"):
        number = OF_EACH_KIND if kind in ("error", "slow", "degraded", "stale") else UNREMARKABLE
        traces = [trace_of(kind) for _ in range(number)]
        sent[kind] = {spans[0].trace_id: spans for spans in traces}
    everything = [spans for traces in sent.values() for spans in traces.values()]
    random.shuffle(everything)
    # Requests first, what they set off after: as separate processes export it.
    for part in (0, 1):
        for start in range(0, len(everything), 500):
            await collector.send(
                each for spans in everything[start : start + 500] for each in spans[part:][:1]
            )

    async def decided() -> bool:
        name = "otelcol_processor_tail_sampling_global_count_traces_sampled"
        return await collector.measured(name) == len(everything)

    await eventually(decided, within_s=30, every_s=0.5)
    kept_for_sure = ("error", "slow", "degraded", "stale")

    async def all_here() -> bool:
        arrived = collector.arrived()
        for kind in kept_for_sure:
            for trace_id, spans in sent[kind].items():
                assert arrived.get(trace_id) == {each.name for each in spans}, kind
        return True

    await eventually(all_here, within_s=30, every_s=0.5)
    arrived = collector.arrived()
    shares = {
        kind: len(arrived.keys() & traces.keys()) / len(traces) for kind, traces in sent.items()
    }
    print("kept:", {kind: f"{share:.3f} of {len(sent[kind])}" for kind, share in shares.items()})
    for kind in ("post", "fine"):
        # 5 standard deviations of a share of 10 % of 4,000.
        assert shares[kind] == pytest.approx(KEPT_PERCENT / 100, abs=0.024)
        for trace_id in arrived.keys() & sent[kind].keys():
            assert arrived[trace_id] == {each.name for each in sent[kind][trace_id]}

    # Spans that come after the decision follow it.
    late = {
        kind: [span(trace_id, "late", 0.01) for trace_id in traces] for kind, traces in sent.items()
    }
    for spans in late.values():
        await collector.send(spans)

    async def late_here() -> bool:
        found = {trace_id for trace_id, names in collector.arrived().items() if "late" in names}
        assert found == arrived.keys()
        return True

    await eventually(late_here, within_s=30, every_s=0.5)
    received = len(list(collector.receiver.spans()))
    assert await collector.measured("otelcol_exporter_sent_spans") == received
