"""Tokens, cursors and the secret that signs them."""

import stat
import threading
from pathlib import Path

import jwt
import pytest
from pydantic import SecretStr

from gateway.problems import Gone
from gateway.tokens import Cursor, Cursors, Tokens, load_secret
from mesh.errors import InvalidArgument, PermissionDenied, Unauthenticated
from mesh.ids import now_ms
from mesh.settings import Settings

SECRET = "s" * 64
tokens = Tokens(SECRET, ttl_s=60)
cursors = Cursors(SECRET)
CURSOR = Cursor("f" * 32, 20)


def signed(expires_in_s: int = 60, reader_id: int = 7) -> str:
    return cursors.sign(CURSOR, reader_id, now_ms() + expires_in_s * 1000)


def test_a_token_speaks_for_its_user() -> None:
    assert tokens.user_id(tokens.issue(42)) == 42


def test_an_expired_token_is_refused_as_such() -> None:
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.user_id(Tokens(SECRET, ttl_s=-1).issue(42))


def altered(token: str) -> str:
    head, body, signature = token.split(".")
    return f"{head}.{body[:-2]}{'AA' if body[-2:] != 'AA' else 'BB'}.{signature}"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        altered(tokens.issue(42)),
        Tokens("o" * 64, 60).issue(42),
        jwt.encode({"sub": "42", "iss": "feedmesh", "iat": 1, "exp": 9e9}, "", "none"),
        jwt.encode({"sub": "42", "iss": "feedmesh", "iat": 1}, SECRET),
        jwt.encode({"sub": "42", "iss": "other", "iat": 1, "exp": 9e9}, SECRET),
        jwt.encode({"sub": "ada", "iss": "feedmesh", "iat": 1, "exp": 9e9}, SECRET),
        signed(),
    ],
    ids=["empty", "junk", "altered", "foreign", "none", "endless", "issuer", "sub", "cursor"],
)
def test_what_is_no_token_of_ours_is_refused(token: str) -> None:
    with pytest.raises(Unauthenticated):
        tokens.user_id(token)


def test_a_cursor_comes_back_as_it_was_signed() -> None:
    assert cursors.read(signed(), 7) == CURSOR


@pytest.mark.parametrize("value", ["", "junk", altered(signed()), tokens.issue(7)])
def test_a_tampered_cursor_is_refused_and_named(value: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        cursors.read(value, 7)
    assert "cursor" in refusal.value.fields


def test_an_expired_cursor_is_gone() -> None:
    with pytest.raises(Gone):
        cursors.read(signed(expires_in_s=-1), 7)


def test_another_readers_cursor_is_not_allowed() -> None:
    with pytest.raises(PermissionDenied):
        cursors.read(signed(reader_id=8), 7)


def test_the_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "new", jwt_secret=None)
    secrets: list[str] = []
    starts = [
        threading.Thread(target=lambda: secrets.append(load_secret(settings))) for _ in range(8)
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(set(secrets)) == 1
    assert len(secrets) == 8
    assert len(secrets[0]) >= 64
    [file] = (tmp_path / "new").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_short_secret_is_refused_by_the_settings_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FEED_JWT_SECRET"):
        load_secret(Settings(data_dir=tmp_path, jwt_secret=SecretStr("short")))
