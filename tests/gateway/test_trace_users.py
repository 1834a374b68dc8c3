"""How traces name users, by each value of FEED_TRACE_USERS."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.trace_users import TraceUsers, query

IDS = st.integers(2**40, 2**63 - 1)


@given(IDS)
def test_a_hash_is_stable_and_needs_the_secret_to_be_found(user_id: int) -> None:
    ours, same, other = (TraceUsers("hashed", secret) for secret in ("ours", "ours", "other"))
    [told] = ours.attributes(user_id).items()
    assert told[0] == "user.hash"
    assert str(user_id) not in told[1]
    assert ours.attributes(user_id) == same.attributes(user_id) != other.attributes(user_id)


@given(IDS, st.sampled_from(["", "/follow", "/posts", "/block"]))
def test_a_path_names_its_user_as_the_attributes_do(user_id: int, rest: str) -> None:
    users = TraceUsers("hashed", "secret")
    [(_, told)] = users.attributes(user_id).items()
    assert users.path(f"/user/{user_id}{rest}") == f"/user/{told}{rest}"


def test_users_can_be_plain_or_left_out() -> None:
    plain, none = TraceUsers("plain", "secret"), TraceUsers("none", "secret")
    assert plain.attributes(7) == {"user.id": "7"}
    assert plain.path("/user/7/follow") == "/user/7/follow"
    assert none.attributes(7) == {}
    assert none.path("/user/7/follow") == "/user/REDACTED/follow"


@pytest.mark.parametrize("path", ["/user", "/feed", "/post/7", "/media/7f/user/1.jpg"])
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert TraceUsers("hashed", "secret").path(path) == path


def test_a_cursor_does_not_stay_in_the_query() -> None:
    assert query("limit=3&cursor=abc&cursor=") == "limit=3&cursor=REDACTED&cursor=REDACTED"
