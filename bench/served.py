"""What it costs a feed to tell the event log what it served: with and without, in one run.

Starts an installation with the demo world, and a gateway in this process whose stage is there in
every other round. CPU is that of this process, which has the gateway alone.

    make bench-served
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from bench.tracing import ratio
from gateway import feed
from gateway.app import create_app
from stores.connect import Connections
from tests.fixtures.installation import Installation


async def _nothing(*_: Any, **__: Any) -> None:
    pass


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--feeds", type=int, default=5, help="feeds a round")
    options = parser.parse_args()
    stages = {"without": replace(feed.SERVED, work=_nothing), "with": feed.SERVED}
    took: dict[str, list[float]] = {name: [] for name in stages}
    cpu: dict[str, list[float]] = {name: [] for name in stages}
    with tempfile.TemporaryDirectory(prefix="feed-") as folder:
        installation = Installation(
            Path(folder) / "data", FEED_DEMO="true", FEED_LOG_GATHER_S="5", FEED_EPSILON="0.05"
        )
        await installation.start()
        reader = await installation.demo_reader()
        async with Connections(installation.settings) as stores:
            app = create_app(installation.settings, stores)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app), base_url="http://feed.bench"
                ) as client,
            ):
                for number in range(options.rounds + 10):
                    order = list(stages.items())
                    for name, stage in order if number % 2 else reversed(order):
                        feed.SERVED = stage
                        took_ms, started = [], time.process_time()
                        for _ in range(options.feeds):
                            began = time.perf_counter()
                            page = (await client.get("/feed", headers=reader.headers)).json()
                            took_ms.append((time.perf_counter() - began) * 1000)
                            assert not page["degraded"], page["degraded"]
                        if number >= 10:
                            took[name].append(statistics.median(took_ms))
                            used = (time.process_time() - started) * 1000
                            cpu[name].append(used / options.feeds)
                explained = await client.get(
                    f"/feed/{page['feed_id']}/explain", headers=reader.headers
                )
                places = sum(
                    fate["position"] is not None for fate in explained.json()["candidates"]
                )
        await installation.stop()
    print(f"a feed of {places} posts")
    print(f"{'the event':12}{'p50 ms':>8}{'ratio':>7}{'CPU ms a feed':>15}{'ratio':>7}")
    for name in stages:
        print(
            f"{name:12}{statistics.median(took[name]):8.1f}"
            f"{ratio(took[name], took['without']):7.3f}"
            f"{statistics.median(cpu[name]):15.2f}{ratio(cpu[name], cpu['without']):7.3f}"
        )


if __name__ == "__main__":
    asyncio.run(main())
