"""Tokens of an external issuer, checked by the keys that it publishes (FEED_JWKS_URL)."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt

from gateway.schemas import RESERVED_PREFIX
from mesh.errors import AlreadyExists, Unauthenticated, Unavailable
from mesh.settings import Settings
from stores.users.port import User, UserStore

# Asymmetric only: with a symmetric one, a published key would be a signing key.
ALGORITHMS = ("RS256", "ES256")
_ALGORITHM_OF = {"RSA": "RS256", "EC": "ES256"}
_REFRESH_S = 30.0
_RETRY_S = 1.0
_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


class Keys:
    """The issuer's public keys by `kid`, fetched when one is not known.

    Args:
        client: Asks the issuer.
        url: Where the keys are published.
        clock: Seconds, growing.
    """

    def __init__(
        self, client: httpx.AsyncClient, url: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._url = url
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._next_fetch = -float("inf")
        self._fetching = asyncio.Lock()

    async def get(self, kid: str) -> jwt.PyJWK:
        """The key. Raises `Unauthenticated` for an unknown one, `Unavailable` without an answer.

        An unknown `kid` asks the issuer again at most every 30 seconds.
        """
        async with self._fetching:
            if kid not in self._keys and self._clock() >= self._next_fetch:
                await self._fetch()
        if kid not in self._keys:
            raise Unauthenticated("The token is signed with a key that its issuer does not have.")
        return self._keys[kid]

    async def _fetch(self) -> None:
        try:
            answer = await self._client.get(self._url, timeout=_TIMEOUT_S)
            published = answer.raise_for_status().json()["keys"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            self._next_fetch = self._clock() + _RETRY_S
            _log.warning("the token issuer's keys cannot be fetched: %r", error)
            raise Unavailable(
                "The token's issuer cannot be reached.", retry_after_s=_RETRY_S
            ) from error
        self._next_fetch = self._clock() + _REFRESH_S
        self._keys = dict(_usable(published))


def _usable(published: list[dict[str, Any]]) -> list[tuple[str, jwt.PyJWK]]:
    keys = []
    for each in published:
        algorithm = _ALGORITHM_OF.get(each.get("kty", ""))
        if algorithm is None or each.get("alg", algorithm) != algorithm or "kid" not in each:
            continue
        try:
            keys.append((each["kid"], jwt.PyJWK.from_dict(each, algorithm)))
        except jwt.PyJWTError as error:
            _log.warning("the token issuer publishes a key that cannot be read: %s", error)
    return keys


class ExternalIssuer:
    """Turns an external issuer's tokens into users of ours.

    The `sub` of a token stands for the user `ext-<hash of iss and sub>`, made when it is first
    seen, so the mapping needs no table and never changes.

    Args:
        client: Asks the issuer for its keys.
        settings: FEED_JWKS_URL, FEED_JWT_ISSUER and FEED_JWT_AUDIENCE are read.
        users: Where the users are kept.
        new_id: Makes a user's id.

    Raises:
        ValueError: The issuer or the audience is not set; without them any token would do that
            the keys' owner ever signed.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        settings: Settings,
        users: UserStore,
        new_id: Callable[[], int],
    ) -> None:
        if not (settings.jwks_url and settings.jwt_issuer and settings.jwt_audience):
            raise ValueError("FEED_JWKS_URL needs FEED_JWT_ISSUER and FEED_JWT_AUDIENCE as well")
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._keys = Keys(client, settings.jwks_url)
        self._users = users
        self._new_id = new_id
        self._known: dict[str, int] = {}

    async def user_id(self, token: str, kid: str) -> int:
        """Whom the token speaks for. Raises `Unauthenticated`, or `Unavailable` without keys."""
        key = await self._keys.get(kid)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                [key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.") from None
        except (jwt.PyJWTError, ValueError):
            raise Unauthenticated("The token is not valid.") from None
        return await self._user(claims)

    async def _user(self, claims: dict[str, Any]) -> int:
        username = username_of(claims["iss"], claims["sub"])
        if username not in self._known:
            self._known[username] = await self._find_or_create(username, claims)
        return self._known[username]

    async def _find_or_create(self, username: str, claims: dict[str, Any]) -> int:
        found = await self._users.credentials(username)
        if found is not None:
            return found.user.user_id
        shown = next(
            (
                name.strip()[:80]
                for claim in ("name", "preferred_username")
                if isinstance(name := claims.get(claim), str) and name.strip()
            ),
            username,
        )
        user = User(self._new_id(), username, shown, datetime.now(UTC))
        try:
            await self._users.create(user, None)
        except AlreadyExists:
            # Another request of theirs came first.
            return await self._find_or_create(username, claims)
        return user.user_id


def username_of(issuer: str, subject: str) -> str:
    """The name of the external subject's user."""
    digest = hashlib.blake2b(f"{issuer}\n{subject}".encode(), digest_size=12).hexdigest()
    return f"{RESERVED_PREFIX}{digest}"
