"""Makes Pinot's table of impressions, by its controller."""

import asyncio
from collections.abc import Mapping, Sequence

import httpx

from stores.events.kafka_client import SHAPES
from stores.events.port import Topic
from stores.impressions.pinot_table import TABLE, PinotVersion, schema, table


async def make_table(
    version: PinotVersion,
    controller: str,
    broker: str,
    kafka: Sequence[str],
    topic: str,
    name: str = TABLE,
    replicas: int = 1,
) -> None:
    """Makes the table of impressions, or brings it up to date; returns when it answers.

    Args:
        version: Whose dialect.
        controller, broker: Their URLs.
        kafka: "host:port" of brokers.
        topic: What the table reads; it exists.
        name: The table's.
        replicas: How many servers have each row.

    Raises:
        httpx.HTTPError: Pinot is away, or refuses it.
        TimeoutError: It does not answer within a minute.
    """
    config = table(
        version, kafka, topic, SHAPES[Topic.IMPRESSIONS].partitions, name=name, replicas=replicas
    )
    async with httpx.AsyncClient(base_url=controller, timeout=30) as client:
        await _put(client, "/schemas", name, schema(name))
        await _put(client, "/tables", name, config)
    async with httpx.AsyncClient(base_url=broker, timeout=5) as client, asyncio.timeout(60):
        while not await _answers(client, name):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def _put(client: httpx.AsyncClient, path: str, name: str, body: Mapping[str, object]) -> None:
    """Makes what is missing, and brings up to date what is there."""
    there = await client.get(f"{path}/{name}")
    if there.status_code == 200 and there.json():
        answer = await client.put(f"{path}/{name}", json=body)
    else:
        answer = await client.post(path, json=body)
    answer.raise_for_status()


async def _answers(client: httpx.AsyncClient, name: str) -> bool:
    answer = await client.post("/query/sql", json={"sql": f"SELECT COUNT(*) FROM {name}"})  # noqa: S608
    return answer.status_code == 200 and not answer.json().get("exceptions")
