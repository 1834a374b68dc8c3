"""What every mailbox store does."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from mesh.errors import Unavailable
from stores.mailboxes.port import CAPACITY, Box, MailboxStore, Progress
from stores.mailboxes.redis import RedisMailboxStore
from stores.redis_client import open_redis
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.fixtures.valkey import free_port


@pytest.fixture(params=["redis", "cluster"])
def mailboxes(request: pytest.FixtureRequest) -> MailboxStore:
    client: Redis = request.getfixturevalue(f"empty_{request.param}")
    return RedisMailboxStore(client)


def mailbox() -> Box:
    """A box that nobody has used yet."""
    return Box("mailbox", fresh_id())


async def built(mailboxes: MailboxStore, *post_ids: int) -> Box:
    box = mailbox()
    await mailboxes.begin_build(box)
    await mailboxes.finish_build(box, post_ids)
    return box


async def test_a_box_that_was_never_built_is_none_and_takes_no_push(
    mailboxes: MailboxStore,
) -> None:
    box = mailbox()
    assert await mailboxes.newest([box], 10) == [None]
    assert await mailboxes.push([box], [1]) == 0
    assert await mailboxes.newest([box], 10) == [None]


async def test_an_empty_box_is_built_all_the_same(mailboxes: MailboxStore) -> None:
    box = await built(mailboxes)
    assert await mailboxes.newest([box], 10) == [[]]
    assert await mailboxes.push([box], [7]) == 1
    assert await mailboxes.newest([box], 10) == [[7]]


async def test_newest_come_first_and_only_as_many_as_asked_for(mailboxes: MailboxStore) -> None:
    post_ids = fresh_ids(30)
    box = await built(mailboxes, *post_ids[::2])
    await mailboxes.push([box], post_ids[1::2])
    assert await mailboxes.newest([box], 7) == [sorted(post_ids, reverse=True)[:7]]
    assert await mailboxes.newest([box], 0) == [[]]


async def test_boxes_answer_in_the_order_they_are_asked(mailboxes: MailboxStore) -> None:
    first, second = await built(mailboxes, 1), await built(mailboxes, 2)
    assert await mailboxes.newest([second, mailbox(), first], 5) == [[2], None, [1]]
    assert await mailboxes.newest([], 5) == []


async def test_a_readers_box_and_the_same_persons_authored_box_are_two(
    mailboxes: MailboxStore,
) -> None:
    owner = fresh_id()
    authored = Box("authored", owner)
    await mailboxes.finish_build(authored, [5])
    assert await mailboxes.newest([authored, Box("mailbox", owner)], 5) == [[5], None]


async def test_a_push_counts_the_boxes_that_exist(mailboxes: MailboxStore) -> None:
    boxes = [await built(mailboxes), mailbox(), await built(mailboxes)]
    assert await mailboxes.push(boxes, [3, 4]) == 2
    assert await mailboxes.push(boxes, []) == 2
    assert await mailboxes.newest(boxes, 5) == [[4, 3], None, [4, 3]]


async def test_a_repeated_push_changes_nothing(mailboxes: MailboxStore) -> None:
    box = await built(mailboxes, 1)
    for _ in range(2):
        await mailboxes.push([box], [2, 3])
    assert await mailboxes.newest([box], 10) == [[3, 2, 1]]


async def test_the_newest_800_are_kept(mailboxes: MailboxStore) -> None:
    post_ids = fresh_ids(CAPACITY + 50)
    box = await built(mailboxes, *post_ids)
    assert await mailboxes.newest([box], 2 * CAPACITY) == [post_ids[:-801:-1]]
    await mailboxes.push([box], later := fresh_ids(3))
    [kept] = await mailboxes.newest([box], 2 * CAPACITY)
    assert kept == sorted([*post_ids[-797:], *later], reverse=True)
    assert await mailboxes.push([box], [1]) == 1
    assert await mailboxes.newest([box], 2 * CAPACITY) == [kept]


async def test_what_is_removed_is_gone_and_the_box_stays(mailboxes: MailboxStore) -> None:
    boxes = [await built(mailboxes, 1, 2), await built(mailboxes, 2), mailbox()]
    await mailboxes.remove(boxes, [2, 9])
    assert await mailboxes.newest(boxes, 5) == [[1], [], None]
    await mailboxes.remove(boxes, [])
    await mailboxes.remove([], [1])
    assert await mailboxes.newest(boxes, 5) == [[1], [], None]


async def test_pushes_while_a_box_is_built_are_kept(mailboxes: MailboxStore) -> None:
    box = mailbox()
    await mailboxes.begin_build(box)
    assert await mailboxes.push([box], [30]) == 1
    assert await mailboxes.newest([box], 5) == [None]
    await mailboxes.finish_build(box, [10, 20])
    assert await mailboxes.newest([box], 5) == [[30, 20, 10]]


async def test_a_box_whose_builder_died_is_built_by_the_next(mailboxes: MailboxStore) -> None:
    box = mailbox()
    await mailboxes.begin_build(box)
    await mailboxes.push([box], [5])
    assert await mailboxes.newest([box], 5) == [None]
    await mailboxes.begin_build(box)
    await mailboxes.finish_build(box, [4])
    assert await mailboxes.newest([box], 5) == [[5, 4]]


async def test_two_builders_of_one_box_do_no_harm(mailboxes: MailboxStore) -> None:
    box = mailbox()
    await mailboxes.begin_build(box)
    await mailboxes.begin_build(box)
    await mailboxes.finish_build(box, [1, 2])
    await mailboxes.push([box], [3])
    await mailboxes.finish_build(box, [1, 2])
    assert await mailboxes.newest([box], 5) == [[3, 2, 1]]


async def test_progress_is_kept_until_it_is_forgotten(mailboxes: MailboxStore) -> None:
    task = f"fanout:{fresh_id()}"
    assert await mailboxes.progress(task) is None
    await mailboxes.save_progress(task, Progress(after=2**62))
    assert await mailboxes.progress(task) == Progress(after=2**62)
    await mailboxes.save_progress(task, None)
    await mailboxes.save_progress(task, None)
    assert await mailboxes.progress(task) is None


# Neighbours of which many share a score, because scores are doubles.
_post_ids = st.lists(st.integers(0, 1_500).map(lambda n: 2**60 + 7 * n), max_size=40)
_many = st.tuples(st.integers(0, 1_200), st.integers(0, 900)).map(
    lambda run: [2**60 + 7 * n for n in range(run[0], run[0] + run[1])]
)
_operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["push", "remove", "finish"]), st.one_of(_post_ids, _many)),
        st.tuples(st.just("begin"), st.just([])),
    ),
    max_size=12,
)


@settings(
    max_examples=60,
    deadline=None,
    # Each example has a box of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(_operations)
async def test_any_sequence_of_operations_holds_the_newest_of_what_a_set_would(
    mailboxes: MailboxStore, operations: list[tuple[str, list[int]]]
) -> None:
    box = mailbox()
    held: set[int] = set()
    exists = complete = False
    for name, post_ids in operations:
        match name:
            case "begin":
                await mailboxes.begin_build(box)
                exists = True
            case "finish":
                await mailboxes.finish_build(box, post_ids)
                exists = complete = True
                held |= set(post_ids)
            case "push":
                assert await mailboxes.push([box], post_ids) == int(exists)
                held |= set(post_ids) if exists else set()
            case "remove":
                await mailboxes.remove([box], post_ids)
                held -= set(post_ids)
        held = set(sorted(held)[-CAPACITY:])
        expected = sorted(held, reverse=True) if complete else None
        assert await mailboxes.newest([box], 2 * CAPACITY) == [expected]


async def test_20_000_boxes_are_pushed_to_at_once(mailboxes: MailboxStore) -> None:
    boxes = [Box("mailbox", owner) for owner in fresh_ids(20_000)]
    for box in boxes[:100]:
        await mailboxes.finish_build(box, [])
    assert await mailboxes.push(boxes, [fresh_id()]) == 100


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.newest([Box("mailbox", 1)], 1),
        lambda store: store.begin_build(Box("mailbox", 1)),
        lambda store: store.finish_build(Box("mailbox", 1), []),
        lambda store: store.push([Box("mailbox", 1)], [1]),
        lambda store: store.remove([Box("mailbox", 1)], [1]),
        lambda store: store.progress("task"),
        lambda store: store.save_progress("task", Progress(1)),
    ],
)
async def test_redis_that_is_away_is_unavailable(
    call: Callable[[MailboxStore], object],
) -> None:
    async with open_redis(f"redis://127.0.0.1:{free_port()}/0") as away:
        with pytest.raises(Unavailable):
            await call(RedisMailboxStore(away))  # type: ignore[misc]


async def test_redis_boxes_expire_unless_they_are_read(empty_redis: Redis) -> None:
    store = RedisMailboxStore(empty_redis)
    box = await built(store)
    key = f"mailbox:{{{box.owner_id}}}"
    month_s = 30 * 86_400
    assert month_s - 5 < await empty_redis.ttl(key) <= month_s
    await empty_redis.expire(key, 100)
    await store.push([box], [1])
    assert await empty_redis.ttl(key) <= 100
    await store.newest([box], 1)
    assert await empty_redis.ttl(key) > 100
