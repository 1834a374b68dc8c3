"""Who a bearer token speaks for, by our own signature or by an external issuer's."""

import time
from collections.abc import Callable

import jwt

from gateway import external, tokens
from gateway.external import ExternalIssuer
from gateway.tokens import Tokens
from mesh import telemetry
from mesh.errors import Unauthenticated
from stores.users.port import UserStore

# Users hardly ever cease to exist: what was seen lately need not be asked for again.
_KNOWN_FOR_S = 30.0
_KNOWN_MAX = 100_000


class Identities:
    """Turns tokens into users that exist.

    The token's algorithm only says which of the two verifiers to ask; each accepts its own
    algorithms and nothing else, so neither "none" nor a public key used as a secret gets through.

    Args:
        own: Verifies our own tokens.
        issuer: Verifies an external issuer's; None when there is none.
        users: Who exists.
        clock: Seconds, growing.
    """

    def __init__(
        self,
        own: Tokens,
        issuer: ExternalIssuer | None,
        users: UserStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._own = own
        self._issuer = issuer
        self._users = users
        self._clock = clock
        self._known_until: dict[int, float] = {}

    async def user_id(self, token: str) -> int:
        """The user. Raises `Unauthenticated`; `Unavailable` when that cannot be found out."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError):
            raise Unauthenticated("The token is not a JWT.") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if self._issuer is not None and algorithm in external.ALGORITHMS and isinstance(kid, str):
            user_id = await self._issuer.user_id(token, kid)
        elif algorithm == tokens.ALGORITHM:
            user_id = self._own.user_id(token)
        else:
            raise Unauthenticated("The token is signed in a way that is not accepted.")
        await self._require_existing(user_id)
        return user_id

    async def _require_existing(self, user_id: int) -> None:
        now = self._clock()
        known = self._known_until.get(user_id, now) > now
        telemetry.annotate({"feed.identity.hit": known})
        if known:
            return
        if user_id not in await self._users.get([user_id]):
            self._known_until.pop(user_id, None)
            raise Unauthenticated("The token's user does not exist any more.")
        if len(self._known_until) >= _KNOWN_MAX:
            self._known_until.clear()
        self._known_until[user_id] = now + _KNOWN_FOR_S
