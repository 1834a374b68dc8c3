"""How long a post took to be found is measured, in the post's own trace."""

import pytest

from mesh import metrics, telemetry
from tests.eventually import eventually
from tests.exposition import Exposition
from tests.fixtures.sql import fresh_ids
from tests.workers.backstage import Backstage
from workers.relay import LEASE

COUNT = "post_visible_seconds_count"


def read() -> Exposition:
    return Exposition(metrics.exposition().decode())


@pytest.mark.parametrize(("worker", "path"), [("fanout", "mailbox"), ("embedding", "vectors")])
async def test_a_post_that_can_be_found_is_measured_once_and_leads_to_its_trace(
    backstage: Backstage, spans: object, worker: str, path: str
) -> None:
    author, follower = fresh_ids(2)
    await backstage.open_mailboxes(follower)
    await backstage.stores.graph().follow_many([(follower, author)])
    before = read()
    with telemetry.span("POST /post"):
        trace_id = telemetry.trace_id()
        post_id = await backstage.post(author, "hello")
    async with backstage.running("relay", worker):
        await backstage.settled(worker, within_s=60)
        after = read()
        await backstage.delete(post_id, author)
        await backstage.settled(worker, within_s=60)
    assert after.value(COUNT, {"path": path}) == before.value(COUNT, {"path": path}) + 1
    assert trace_id in after.exemplars["post_visible_seconds"]
    # Its deletion makes nothing visible.
    assert read().value(COUNT) == after.value(COUNT)


async def test_a_post_of_an_author_who_is_pulled_is_visible_in_that_authors_own_list(
    backstage: Backstage,
) -> None:
    author, *readers = fresh_ids(3)
    await backstage.stores.graph().follow_many([(reader, author) for reader in readers])
    await backstage.stores.graph().mark_pulled(author)
    before = read()
    async with backstage.running("relay", "fanout"):
        await backstage.post(author, "hello, all")
        await backstage.settled("fanout")
    after = read()
    assert after.value(COUNT, {"path": "pulled"}) == before.value(COUNT, {"path": "pulled"}) + 1
    assert after.value(COUNT, {"path": "mailbox"}) == before.value(COUNT, {"path": "mailbox"})


async def test_an_outbox_that_another_relay_empties_is_not_told_of_twice(
    backstage: Backstage,
) -> None:
    [author] = fresh_ids(1)
    metrics.OUTBOX_PENDING.set(7)
    stores = backstage.stores
    assert await stores.leases().acquire(LEASE, "another relay", 60)
    async with backstage.running("relay"):
        await backstage.post(author, "waits for the other relay")

        def told() -> bool:
            return read().value("outbox_pending") == 0

        await eventually(told)
