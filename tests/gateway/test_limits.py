"""Rate limits, counted in a real Valkey."""

import pytest

from gateway.limits import RateLimits
from mesh.errors import ResourceExhausted
from mesh.settings import Settings
from stores.redis_client import open_redis
from tests.fixtures.sql import fresh_id
from tests.fixtures.world import World
from tests.gateway.helpers import changed, problem

FEW = Settings(
    rate_limit_user="3/minute", rate_limit_address="5/minute", rate_limit_login="2/minute"
)


def an_address() -> str:
    return f"address-{fresh_id()}"


@pytest.fixture(params=["redis", "cluster"])
def limits(request: pytest.FixtureRequest) -> RateLimits:
    return RateLimits(FEW, request.getfixturevalue(f"empty_{request.param}"))


async def test_a_user_is_stopped_after_their_share_and_told_when_to_come_back(
    limits: RateLimits,
) -> None:
    user_id = fresh_id()
    for _ in range(3):
        await limits.request(an_address(), user_id)
    with pytest.raises(ResourceExhausted) as refusal:
        await limits.request(an_address(), user_id)
    assert refusal.value.retry_after_s is not None
    assert 1 <= refusal.value.retry_after_s <= 60
    await limits.request(an_address(), fresh_id())


async def test_an_address_is_stopped_whoever_asks(limits: RateLimits) -> None:
    address = an_address()
    for _ in range(4):
        await limits.request(address, fresh_id())
    await limits.request(address)
    with pytest.raises(ResourceExhausted):
        await limits.request(address, fresh_id())
    await limits.request(an_address())


async def test_logins_have_a_stricter_limit(limits: RateLimits) -> None:
    address = an_address()
    for _ in range(2):
        await limits.login(address)
    with pytest.raises(ResourceExhausted):
        await limits.login(address)


async def test_requests_pass_while_redis_is_away() -> None:
    client = open_redis("redis://127.0.0.1:9/0")
    limits = RateLimits(FEW, client)
    for _ in range(10):
        await limits.request("one", 1)
    await client.aclose()


async def test_over_rest_it_is_429_with_retry_after(world: World, limits: RateLimits) -> None:
    reader = await world.sign_up()
    with changed(world, limits=limits):
        answers = [
            await world.client.get(f"/user/{reader.user_id}", headers=reader.headers)
            for _ in range(4)
        ]
    assert [answer.status_code for answer in answers[:3]] == [200] * 3
    problem(answers[3], 429, "resource_exhausted")
    assert int(answers[3].headers["retry-after"]) >= 1
