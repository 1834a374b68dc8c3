"""Feast's history against what a mesh logged that reads its features from that Feast."""

import asyncio
import random
import re
from pathlib import Path

import pytest

from stores.log.port import Kind
from stores.redis_client import open_redis
from tests.eventually import eventually
from tests.fixtures.feast import PATIENT_S, fallbacks
from tests.fixtures.world import Person, World, running_world
from tests.stack.test_feast import OwnFeast, own
from training.skew import COMPARED, Asked, report

__all__ = ["own"]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

TAGS = ("tea", "chess", "rain", "")
ROUNDS = 40


async def test_history_has_what_feeds_were_served_with(
    own: OwnFeast, vectors_target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = {
        "FEED_FEATURES_URL": f"{own.url}?timeout={PATIENT_S}",
        "FEED_REDIS_URL": own.redis_url,
        "FEED_EVENTS_URL": own.redis_url,
        "FEED_VECTORS_URL": f"edge://{vectors_target.removeprefix('unix:')}",
    }
    before = fallbacks()
    async with running_world(tmp_path / "world", urls) as world:
        await live(world)
        await pushed(own)
        served = world.stores.feed_log().read(Kind.SERVED)
        feeds = len(served["feed_id"].unique())
    asked = Asked(tmp_path / "world" / "log", own.place.data("feast"))
    mismatches = await report(asked, own.place.cache)
    printed = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{feeds} feeds\n{printed}")

    assert fallbacks() == before
    assert feeds >= ROUNDS
    # Zeros are easily equal.
    for name in (*COMPARED[:3], *COMPARED[4:]):
        assert any(served[name].to_pylist()), name
    assert mismatches == 0
    found = re.search(r"0 mismatches of ([\d,]+); ([\d,]+) in flight", printed)
    assert found
    compared, flying = (int(each.replace(",", "")) for each in found.groups())
    # Else it would compare little but what was on its way.
    assert compared > 100
    assert flying < compared / 2


async def live(world: World) -> None:
    """Readers read while others write, like and follow."""
    chance = random.Random(5)
    people = [await world.sign_up() for _ in range(5)]
    for reader in people:
        for author in chance.sample(people, 3):
            if author is not reader:
                await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    posts: list[str] = []
    for _ in range(ROUNDS):
        for author in chance.sample(people, 2):
            posts.append(await write(world, author, chance.choice(TAGS), len(posts)))
        reader, other = chance.sample(people, 2)
        page = await world.feed(reader)
        for item in page["items"][:3]:
            await world.client.put(f"/post/{item['post_id']}/like", headers=reader.headers)
        await world.client.put(f"/post/{chance.choice(posts)}/like", headers=other.headers)
        await asyncio.sleep(chance.random() * 2)


async def write(world: World, author: Person, tag: str, number: int) -> str:
    return await world.post(author, f"Text {number} about {tag}", tags=[tag] if tag else [])


async def pushed(own: OwnFeast) -> None:
    """Returns when Feast has every change, and the log every feed."""
    async with open_redis(own.redis_url) as redis:

        async def nothing_waits() -> bool:
            return not await redis.zcard("feature:unpushed:{all}")

        await asyncio.sleep(3)
        await eventually(nothing_waits, within_s=90, every_s=0.5)
