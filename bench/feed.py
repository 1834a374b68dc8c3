"""GET /feed under load: p50, p99, feeds a second, and CPU a feed.

Needs a running installation (`make run`) with the demo world. The floor is GET /healthz on the
same server in the same run: what HTTP itself costs here.

    make bench
"""

import argparse
import asyncio
import time
from dataclasses import dataclass

import httpx
import psutil

from local.demo.world import DEMO_PASSWORD, DEMO_USERNAME


@dataclass(frozen=True)
class Load:
    """What one series of requests took. Times in milliseconds."""

    p50: float
    p99: float
    per_second: float
    errors: int
    cpu: float


async def measure(
    client: httpx.AsyncClient, path: str, headers: dict[str, str], requests: int, concurrency: int
) -> Load:
    """Sends `requests` GETs, `concurrency` at a time."""
    took: list[float] = []
    errors = 0
    todo = iter(range(requests))

    async def reader() -> None:
        nonlocal errors
        for _ in todo:
            started = time.perf_counter()
            answer = await client.get(path, headers=headers)
            took.append((time.perf_counter() - started) * 1000)
            errors += answer.status_code != 200

    cpu, started = _cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(reader() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    cpu = (_cpu_seconds() - cpu) * 1000 / requests
    took.sort()
    return Load(took[len(took) // 2], took[int(len(took) * 0.99)], requests / seconds, errors, cpu)


def _cpu_seconds() -> float:
    """CPU time so far of every process of the installation."""
    total = 0.0
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if any(part in command for part in ("local.serve", "edge_server", "valkey-server")):
            times = process.cpu_times()
            total += times.user + times.system
    return total


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    async with httpx.AsyncClient(base_url=options.url, timeout=30) as client:
        login = await client.post(
            "/auth/token", data={"username": DEMO_USERNAME, "password": DEMO_PASSWORD}
        )
        login.raise_for_status()
        headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
        await measure(client, "/feed", headers, 20, 4)
        rows = {
            "GET /feed, one at a time": await measure(
                client, "/feed", headers, options.requests, 1
            ),
            f"GET /feed, {options.concurrency} at a time": await measure(
                client, "/feed", headers, options.requests, options.concurrency
            ),
            f"GET /healthz, {options.concurrency} at a time (floor)": await measure(
                client, "/healthz", {}, options.requests, options.concurrency
            ),
        }
    print(f"{'':42}{'p50 ms':>9}{'p99 ms':>9}{'req/s':>9}{'CPU ms':>9}{'errors':>8}")
    for name, load in rows.items():
        print(
            f"{name:42}{load.p50:9.1f}{load.p99:9.1f}{load.per_second:9.0f}{load.cpu:9.1f}"
            f"{load.errors:8}"
        )


if __name__ == "__main__":
    asyncio.run(main())
