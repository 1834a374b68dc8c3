"""What the import format accepts, and what it says about the rest."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.format import ImpressionLine, Line, PostLine, UserLine, dump, parse
from mesh.packing import DIMENSIONS

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def parsed(**fields: Any) -> Line:
    return parse(json.dumps(fields).encode())


def post(**fields: Any) -> PostLine:
    line = parsed(kind="post", id="p", author="u", **{"text": "hello", **fields})
    assert isinstance(line, PostLine)
    return line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ("\xff\xfe", "Invalid JSON"),
        ("{}", "discriminator 'kind'"),
        ('{"kind": "poke"}', "'poke'"),
        ('{"kind": "user", "id": "u"}', "username: Field required"),
        ('{"kind": "user", "id": 7, "username": "ada"}', "id: Input should be a valid string"),
        ('{"kind": "user", "id": "", "username": "ada"}', "id: "),
        ('{"kind": "user", "id": "u", "username": "a b"}', "username: "),
        ('{"kind": "user", "id": "u", "username": "ada", "age": 3}', "age: Extra inputs"),
        ('{"kind": "follow", "follower": "u", "author": "u"}', "nobody follows themselves"),
        ('{"kind": "post", "id": "p", "author": "u", "text": " "}', "a post needs a text or media"),
        ('{"kind": "like", "user": "u", "post": "p", "at": "2026-01-01T00:00:00"}', "at: "),
        ('{"kind": "like", "user": "u", "post": "p", "at": 1767225600}', "at: "),
        ('{"kind": "impression", "user": "u", "post": "p"}', "at: Field required"),
        (
            '{"kind": "impression", "user": "u", "post": "p", "at": "2026-01-01T00:00:00Z", '
            '"dwell_ms": -1}',
            "dwell_ms: ",
        ),
    ],
)
def test_a_bad_line_is_refused_with_its_reason(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as refusal:
        parse(line.encode("latin-1"))
    assert reason in str(refusal.value)


def test_a_refusal_never_shows_the_password() -> None:
    with pytest.raises(ValueError, match="password") as refusal:
        parsed(kind="user", id="u", username="ada", password="hunter2")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("embedding", "reason"),
    [
        ([0.1] * 383, "383 numbers"),
        ([0.0] * DIMENSIONS, "no direction"),
        ([1e39, *[0.0] * 383], "no direction"),
        ([10**400, *[0.0] * 383], "too large"),
        (["x"] * DIMENSIONS, "neither a list of numbers nor base64"),
        ([True] * DIMENSIONS, "neither a list of numbers nor base64"),
        ("not base64!", "not the base64"),
        (base64.b64encode(b"\0" * 1533).decode(), "not the base64"),
        (base64.b64encode(b"\0" * 1532).decode(), "383 numbers"),
        ({"x": 1}, "neither a list of numbers nor base64"),
    ],
)
def test_a_bad_embedding_is_refused(embedding: object, reason: str) -> None:
    with pytest.raises(ValueError, match="embedding: ") as refusal:
        post(embedding=embedding)
    assert reason in str(refusal.value)


def test_an_embedding_comes_as_numbers_or_base64_and_is_scaled_to_length_1() -> None:
    numbers = np.random.default_rng(1).normal(size=DIMENSIONS).astype("<f4")
    as_list = post(embedding=numbers.tolist()).embedding
    as_base64 = post(embedding=base64.b64encode(numbers.tobytes()).decode()).embedding
    assert as_list is not None
    assert as_base64 is not None
    assert as_list.dtype == np.float32
    np.testing.assert_array_equal(as_list, as_base64)
    np.testing.assert_allclose(as_list, numbers / np.linalg.norm(numbers), rtol=1e-5)


def test_tags_are_kept_as_the_rest_interface_keeps_them() -> None:
    assert post(tags=["#Coffee", " coffee ", "Latte Art"]).tags == ("coffee", "latte art")


def test_times_are_written_in_utc_to_the_millisecond() -> None:
    at = datetime(2026, 3, 1, 14, 0, 0, 123999, timezone(timedelta(hours=2)))
    line = ImpressionLine(user="u", post="p", at=at)
    assert json.loads(dump(line))["at"] == "2026-03-01T12:00:00.123Z"


ids = st.text(min_size=1, max_size=20)
times = st.datetimes(
    datetime(2020, 1, 1),
    datetime(2030, 1, 1),
    timezones=st.just(UTC),
).map(lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000))


@given(
    st.one_of(
        st.builds(UserLine, id=ids, username=st.from_regex(r"[a-z][a-z0-9]{1,20}", fullmatch=True)),
        st.builds(
            PostLine,
            id=ids,
            author=ids,
            text=st.text(min_size=1, max_size=50).filter(str.strip),
            created_at=times,
            tags=st.lists(st.sampled_from(["a", "b", "ü"]), unique=True).map(tuple),
            media=st.just(()),
            embedding=st.none(),
        ),
        st.builds(
            ImpressionLine, user=ids, post=ids, at=times, dwell_ms=st.integers(0, 1000), id=ids
        ),
    )
)
def test_what_is_written_is_read_again(line: Line) -> None:
    written = dump(line)
    assert written.count(b"\n") == 1
    assert parse(written) == line


def test_an_embedding_survives_writing_bit_by_bit() -> None:
    numbers = np.random.default_rng(2).normal(size=DIMENSIONS)
    first = post(embedding=numbers.tolist())
    again = parse(dump(first))
    assert isinstance(again, PostLine)
    assert first.embedding is not None
    assert again.embedding is not None
    np.testing.assert_array_equal(again.embedding, first.embedding)
