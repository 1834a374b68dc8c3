"""Processes are killed with -9; what was acknowledged arrives all the same, exactly once."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial

import httpx
import pytest

from mesh.errors import FeedError
from mesh.ids import Snowflakes
from stores.connect import Connections
from stores.mailboxes.port import Box
from stores.users.port import Credentials, User
from tests.eventually import eventually
from tests.fixtures.installation import Installation, Process

FOLLOWERS = 20_000
KILLS = 20


# Of each test its own: what one leaves behind dead must not fail another, or its second try.
@pytest.fixture
async def installation(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    # Above the limit the author would be pulled; here every follower is pushed to.
    installation = Installation(
        tmp_path_factory.mktemp("crash") / "data", FEED_PUSH_LIMIT=str(2 * FOLLOWERS)
    )
    await installation.start()
    yield installation
    await installation.stop()


@pytest.mark.timeout(300)
async def test_a_fan_out_killed_midway_reaches_every_active_follower_once(
    installation: Installation,
) -> None:
    author = await installation.sign_up("celebrity")
    ids = Snowflakes(worker_id=900)
    now = datetime.now(UTC)
    readers = [User(ids.next(), f"reader{n}", f"Reader {n}", now) for n in range(FOLLOWERS)]
    mailboxes = [Box("mailbox", reader.user_id) for reader in readers]
    async with Connections(installation.settings) as stores:
        await stores.users().create_many([Credentials(reader, None) for reader in readers])
        await stores.graph().follow_many(
            [(reader.user_id, int(author.user_id)) for reader in readers]
        )
        store = stores.mailboxes()
        for start in range(0, FOLLOWERS, 500):
            await asyncio.gather(
                *(store.finish_build(box, []) for box in mailboxes[start : start + 500])
            )

        answer = await installation.client.post(
            "/post", json={"text": "to all of you"}, headers=author.headers
        )
        post_id = int(answer.json()["post_id"])

        async def reached() -> int:
            boxes = await store.newest(mailboxes, 10)
            return sum(1 for ids in boxes if ids == [post_id])

        # Progress is kept only while the fan-out is under way: some have it and some do not.
        await eventually(lambda: store.progress(f"fanout:{post_id}"), within_s=60, every_s=0.001)
        await installation.kill("workers")
        at_kill = await reached()
        assert 0 < at_kill < FOLLOWERS

        async def everyone() -> bool:
            assert await reached() == FOLLOWERS
            return True

        await eventually(everyone, within_s=120, every_s=0.2)


@pytest.mark.timeout(600)
async def test_no_acknowledged_post_is_lost_whichever_process_is_killed(
    installation: Installation,
) -> None:
    author = await installation.sign_up("author")
    reader = await installation.sign_up("reader")
    follow = await installation.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    assert follow.status_code == 204
    await installation.feed(reader)

    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def keep_posting() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            try:
                answer = await installation.client.post(
                    "/post",
                    json={"text": f"post number {number}"},
                    headers={**author.headers, "Idempotency-Key": f"n{number}"},
                )
            except httpx.HTTPError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == 201:
                acknowledged.append(answer.json()["post_id"])
            await asyncio.sleep(0.02)

    posting = asyncio.create_task(keep_posting())
    chosen = random.Random(5)
    targets: list[Process] = ["mesh", "workers", "vectors", "valkey", "launcher"]
    for kill in range(KILLS):
        enough = len(acknowledged) + 3
        await eventually(partial(_at_least, acknowledged, enough), within_s=60)
        target = targets[kill % len(targets)]
        await asyncio.sleep(chosen.uniform(0, 0.2))
        await installation.kill(target)
        if target == "launcher":
            await installation.start()
        await eventually(installation.is_ready, within_s=90, every_s=0.05)
    stop.set()
    await posting

    wanted = {int(post_id) for post_id in acknowledged}
    assert len(wanted) >= 3 * KILLS
    async with Connections(installation.settings) as stores:
        assert set(await stores.posts().get(sorted(wanted))) == wanted

        async def arrived() -> bool:
            try:
                [mailbox] = await stores.mailboxes().newest(
                    [Box("mailbox", int(reader.user_id))], 800
                )
                vectors = await stores.vectors().retrieve(sorted(wanted))
            except FeedError as error:
                # The process that was killed last may still be coming back.
                raise AssertionError(error.detail) from error
            assert set(sorted(wanted)[-800:]) <= set(mailbox or ())
            assert len(mailbox or ()) == len(set(mailbox or ()))
            assert set(vectors) == wanted
            return True

        await eventually(arrived, within_s=120, every_s=0.2)


def _at_least(items: list[str], count: int) -> bool:
    return len(items) >= count
