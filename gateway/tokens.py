"""Signed values that clients hold: access tokens, cursors, upload keys. One secret for all.

A cursor has an audience and an access token has none, so neither passes for the other.
"""

import hmac
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from gateway.problems import Gone
from gateway.schemas import parse_id
from mesh.errors import InvalidArgument, PermissionDenied, Unauthenticated
from mesh.settings import Settings

ISSUER = "feedmesh"
ALGORITHM = "HS256"
_CURSOR = "feedmesh/cursor"
_MIN_SECRET_BYTES = 32
_UPLOAD_KEY = re.compile(r"uploads/([0-9a-f]{32})([0-9a-f]{32})(\.[a-z0-9]{2,4})")


def load_secret(settings: Settings) -> str:
    """FEED_JWT_SECRET; or the one kept in FEED_DATA_DIR, which is made at the first start.

    Raises ValueError when it is too short to sign with.
    """
    if settings.jwt_secret is not None:
        secret = settings.jwt_secret.get_secret_value()
        if len(secret.encode()) < _MIN_SECRET_BYTES:
            raise ValueError(f"FEED_JWT_SECRET needs at least {_MIN_SECRET_BYTES} bytes")
        return secret
    path = settings.data_dir / "secret"
    if not path.exists():
        _keep_new_secret(path)
    return path.read_text().strip()


def _keep_new_secret(path: Path) -> None:
    """Whoever links first wins, so that processes that start together agree on one secret."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(_MIN_SECRET_BYTES))
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


class Tokens:
    """Access tokens of our own: a user's id, signed.

    Args:
        secret: At least 32 bytes.
        ttl_s: Seconds a token is good for.
    """

    def __init__(self, secret: str, ttl_s: int) -> None:
        self._secret = secret
        self.ttl_s = ttl_s

    def issue(self, user_id: int) -> str:
        """A token for the user."""
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": str(user_id), "iat": now, "exp": now + self.ttl_s}
        return jwt.encode(claims, self._secret, ALGORITHM)

    def user_id(self, token: str) -> int:
        """Whom the token speaks for. Raises `Unauthenticated` unless it is ours and in time."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                [ALGORITHM],
                issuer=ISSUER,
                options={"require": ["exp", "iat", "iss", "sub"]},
            )
            return parse_id(claims["sub"])
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.") from None
        except (jwt.PyJWTError, ValueError):
            raise Unauthenticated("The token is not valid.") from None


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a reader stopped in a feed. `position` counts posts from 0."""

    feed_id: str
    position: int


class Cursors:
    """Cursors of feeds, signed, bound to their reader.

    Args:
        secret: At least 32 bytes.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def sign(self, cursor: Cursor, reader_id: int, expires_at_ms: int) -> str:
        """The cursor as its reader gets it."""
        claims = {
            "aud": _CURSOR,
            "sub": str(reader_id),
            "exp": expires_at_ms // 1000,
            "feed_id": cursor.feed_id,
            "position": cursor.position,
        }
        return jwt.encode(claims, self._secret, ALGORITHM)

    def read(self, signed: str, reader_id: int) -> Cursor:
        """The cursor that was signed.

        Raises `InvalidArgument` when it was tampered with, `Gone` when it has expired and
        `PermissionDenied` when it is another reader's.
        """
        try:
            claims: dict[str, Any] = jwt.decode(
                signed,
                self._secret,
                [ALGORITHM],
                audience=_CURSOR,
                options={"require": ["aud", "exp", "sub", "feed_id", "position"]},
            )
        except jwt.ExpiredSignatureError:
            raise Gone("The cursor has expired; begin a new feed.") from None
        except (jwt.PyJWTError, ValueError):
            raise InvalidArgument(
                "The cursor is not one that was given out.", fields={"cursor": "is not valid"}
            ) from None
        if claims["sub"] != str(reader_id):
            raise PermissionDenied("The cursor is another reader's.")
        return Cursor(claims["feed_id"], claims["position"])


class UploadKeys:
    """Keys of uploads, which only the one who asked for them can use.

    Args:
        secret: At least 32 bytes.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def new(self, user_id: int, suffix: str) -> str:
        """A key that nobody can guess; it tells nothing of its user."""
        name = secrets.token_hex(16)
        return f"uploads/{name}{self._mark(name, suffix, user_id)}{suffix}"

    def is_of(self, key: str, user_id: int) -> bool:
        """Whether the user was given the key."""
        match = _UPLOAD_KEY.fullmatch(key)
        if match is None:
            return False
        name, mark, suffix = match.groups()
        return hmac.compare_digest(mark, self._mark(name, suffix, user_id))

    def _mark(self, name: str, suffix: str, user_id: int) -> str:
        said = f"upload {name} {suffix} {user_id}"
        return hmac.new(self._secret, said.encode(), "sha256").hexdigest()[:32]
