"""What tracing costs a feed: off, at 1 % and at 100 %, side by side in one run.

Starts three installations with the demo world, which take turns, so that whatever else the machine
does meets all alike. Spans go over OTLP to a process that takes and forgets them. CPU is that of
all processes which make a feed: gateway and services, Valkey, the vector engine.

    make bench-tracing
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.fixtures.installation import Installation
from tests.fixtures.world import Person

OFF, SOME, ALL = "off", "1 %", "100 %"
_SERVING = ("mesh", "vectors", "valkey")


@dataclass
class Subject:
    """An installation, and what its feeds took in each round: median and CPU, milliseconds."""

    installation: Installation
    reader: Person
    took: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    async def round(self, feeds: int) -> None:
        """Makes some feeds, one after another."""
        before, took = self._cpu_s(), []
        for _ in range(feeds):
            started = time.perf_counter()
            await self.installation.feed(self.reader)
            took.append((time.perf_counter() - started) * 1000)
        self.took.append(statistics.median(took))
        self.cpu.append((self._cpu_s() - before) * 1000 / feeds)

    def forget(self) -> None:
        """Begins anew."""
        self.took.clear()
        self.cpu.clear()

    def _cpu_s(self) -> float:
        pids = self.installation.pids()
        times = [psutil.Process(pids[name]).cpu_times() for name in _SERVING]
        return sum(each.user + each.system for each in times)


def ratio(values: Sequence[float], floor: Sequence[float]) -> float:
    """The median of the rounds' ratios: the machine's speed changes, but not within a round."""
    return statistics.median(a / b for a, b in zip(values, floor, strict=True))


@asynccontextmanager
async def _collector() -> AsyncIterator[str]:
    sink = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.otlp_sink", stdout=asyncio.subprocess.PIPE
    )
    assert sink.stdout is not None
    try:
        yield f"grpc://127.0.0.1:{int(await sink.stdout.readline())}"
    finally:
        sink.terminate()
        await sink.wait()


@asynccontextmanager
async def _subject(folder: Path, **env: str) -> AsyncIterator[Subject]:
    installation = Installation(folder, FEED_DEMO="true", FEED_DEBUG_TRACES="0", **env)
    await installation.start()
    try:
        yield Subject(installation, await installation.demo_reader())
    finally:
        await installation.stop()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--feeds", type=int, default=10, help="feeds a round")
    options = parser.parse_args()
    async with AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="feed-")))
        endpoint = await running.enter_async_context(_collector())
        env = {
            OFF: {"OTEL_SDK_DISABLED": "true"},
            SOME: {"FEED_OTLP_ENDPOINT": endpoint, "FEED_TRACE_RATIO": "0.01"},
            ALL: {"FEED_OTLP_ENDPOINT": endpoint, "FEED_TRACE_RATIO": "1"},
        }
        subjects = {
            name: await running.enter_async_context(_subject(folder / f"{n}", **more))
            for n, (name, more) in enumerate(env.items())
        }
        order = list(subjects.values())
        for subject in order:
            await subject.round(10 * options.feeds)
            subject.forget()
        for _ in range(options.rounds):
            for subject in order:
                await subject.round(options.feeds)
            # Whoever came first comes last: a drift within rounds favours nobody.
            order.append(order.pop(0))
        off = subjects[OFF]
        print(f"{'traces sampled':16}{'p50 ms':>8}{'ratio':>7}{'CPU ms a feed':>15}{'ratio':>7}")
        for name, subject in subjects.items():
            took, cpu = statistics.median(subject.took), statistics.median(subject.cpu)
            print(
                f"{name:16}{took:8.1f}{ratio(subject.took, off.took):7.2f}"
                f"{cpu:15.1f}{ratio(subject.cpu, off.cpu):7.2f}"
            )


if __name__ == "__main__":
    asyncio.run(main())
