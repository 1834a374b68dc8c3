"""How traces name users: nobody who reads one shall learn who it was, unless a setting says so."""

import re
from hashlib import blake2b
from typing import Literal
from urllib.parse import parse_qsl, urlencode

from starlette.types import ASGIApp, Receive, Scope, Send

from mesh import telemetry

_HASH_BYTES = 8
# Whoever has one reads somebody's feed.
_SECRET_PARAMETERS = frozenset({"cursor"})
_USER_IN_PATH = re.compile(r"(?<=^/user/)[^/]+")


class TraceUsers:
    """Gives spans the user's hash, their id, or nothing.

    Args:
        mode: FEED_TRACE_USERS.
        secret: Without it nobody can try which id has a hash.
    """

    def __init__(self, mode: Literal["hashed", "plain", "none"], secret: str) -> None:
        self._mode = mode
        self._key = blake2b(secret.encode(), digest_size=32).digest()

    def attributes(self, user_id: int) -> dict[str, str]:
        """`user.hash`, or `user.id`, by the conventions."""
        match self._mode:
            case "hashed":
                return {"user.hash": self._hash(str(user_id))}
            case "plain":
                return {"user.id": str(user_id)}
            case "none":
                return {}

    def path(self, path: str) -> str:
        """The path of a request, with the user in it named as `attributes` names them."""
        if self._mode == "plain":
            return path
        return _USER_IN_PATH.sub(
            lambda found: self._hash(found[0]) if self._mode == "hashed" else "REDACTED", path
        )

    def _hash(self, user_id: str) -> str:
        return blake2b(user_id.encode(), key=self._key, digest_size=_HASH_BYTES).hexdigest()


def query(text: str) -> str:
    """A query string without what gives access."""
    return urlencode(
        [
            (name, "REDACTED" if name in _SECRET_PARAMETERS else value)
            for name, value in parse_qsl(text, keep_blank_values=True)
        ]
    )


class UrlRedaction:
    """Middleware within the server span, which has been given the URL as it came.

    Args:
        app: What answers.
        users: How users are named.
    """

    def __init__(self, app: ASGIApp, users: TraceUsers) -> None:
        self._app = app
        self._users = users

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and telemetry.is_recording():
            telemetry.annotate({"url.path": self._users.path(scope["path"])})
            if scope["query_string"]:
                shown = query(scope["query_string"].decode("latin-1"))
                telemetry.annotate({"url.query": shown})
        await self._app(scope, receive, send)
