"""What every adapter of the users port does."""

import asyncio
from datetime import UTC, datetime

import pytest

from mesh.errors import AlreadyExists, InvalidArgument
from stores.sql.database import Database
from stores.users.port import Credentials, User, UserStore
from stores.users.sql import SqlUserStore
from tests.fixtures.sql import fresh_id, fresh_ids


@pytest.fixture
def users(database: Database) -> UserStore:
    return SqlUserStore(database)


def a_user(username: str | None = None) -> User:
    user_id = fresh_id()
    return User(user_id, username or f"Ana{user_id}", "Ana é 🏔", datetime.now(UTC))


async def test_a_created_user_is_found_by_id_and_by_name_in_any_case(users: UserStore) -> None:
    user = a_user()
    await users.create(user, "hash")
    assert await users.get([user.user_id, fresh_id()]) == {user.user_id: user}
    assert await users.credentials(user.username.upper()) == Credentials(user, "hash")


async def test_credentials_are_read_in_pages(users: UserStore) -> None:
    added = [Credentials(a_user(), "hash" if n % 2 else None) for n in range(5)]
    await users.create_many(added)
    before = added[0].user.user_id - 1
    assert await users.credentials_page(before, 3) == added[:3]
    assert await users.credentials_page(added[2].user.user_id, 3) == added[3:]


async def test_an_unknown_name_has_no_credentials(users: UserStore) -> None:
    assert await users.credentials(f"nobody{fresh_id()}") is None


async def test_a_user_may_have_no_password(users: UserStore) -> None:
    user = a_user()
    await users.create(user, None)
    assert await users.credentials(user.username) == Credentials(user, None)


async def test_a_name_is_taken_whatever_its_case(users: UserStore) -> None:
    user = a_user()
    await users.create(user, None)
    with pytest.raises(AlreadyExists):
        await users.create(a_user(user.username.swapcase()), None)


async def test_of_concurrent_sign_ups_with_one_name_one_succeeds(users: UserStore) -> None:
    name = f"bo{fresh_id()}"
    outcomes = await asyncio.gather(
        *(users.create(a_user(name), None) for _ in range(10)), return_exceptions=True
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, AlreadyExists) for outcome in outcomes) == 9


async def test_bulk_passes_over_known_ids_and_may_be_repeated(users: UserStore) -> None:
    known = a_user()
    await users.create(known, "hash")
    added = [Credentials(a_user(), None) for _ in range(2500)]
    for _ in range(2):
        await users.create_many([*added, added[0], Credentials(known, "other hash")])
    assert len(await users.get([one.user.user_id for one in added])) == 2500
    assert await users.credentials(known.username) == Credentials(known, "hash")


@pytest.mark.parametrize("within_the_batch", [False, True])
async def test_bulk_adds_nobody_when_a_name_is_taken(
    users: UserStore, within_the_batch: bool
) -> None:
    taken = a_user()
    batch = [Credentials(a_user(), None) for _ in range(1500)]
    batch.append(Credentials(a_user(taken.username.upper()), None))
    if within_the_batch:
        batch.append(Credentials(taken, None))
    else:
        await users.create(taken, None)
    with pytest.raises(AlreadyExists):
        await users.create_many(batch)
    assert await users.get([one.user.user_id for one in batch]) == {}


async def test_pages_go_through_all_users_in_the_order_of_ids(users: UserStore) -> None:
    before = fresh_id()
    added = [a_user() for _ in range(5)]
    await users.create_many([Credentials(user, None) for user in reversed(added)])
    first = await users.page(before, 3)
    assert first == added[:3]
    assert (await users.page(first[-1].user_id, 100))[:2] == added[3:]
    assert await users.page(fresh_id(), 3) == []


async def test_thousands_of_ids_are_looked_up_at_once(users: UserStore) -> None:
    user = a_user()
    await users.create(user, None)
    assert await users.get([*fresh_ids(7500), user.user_id]) == {user.user_id: user}
    assert await users.get([]) == {}


@pytest.mark.parametrize(
    "user",
    [
        User(1 << 63, "too great", "", datetime.now(UTC)),
        User(1, "half a pair", "\ud800", datetime.now(UTC)),
    ],
    ids=["id beyond 63 bits", "no valid Unicode"],
)
async def test_what_cannot_be_stored_is_invalid(users: UserStore, user: User) -> None:
    with pytest.raises(InvalidArgument):
        await users.create(user, None)
