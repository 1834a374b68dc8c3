"""Tokens of an external issuer, with real keys."""

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from gateway.external import ExternalIssuer, Keys
from gateway.identity import Identities
from gateway.tokens import Tokens
from mesh.errors import Unauthenticated, Unavailable
from mesh.settings import Settings
from stores.sql.database import Database
from stores.users.sql import SqlUserStore
from tests.fixtures.sql import fresh_id

URL = "https://issuer.test/keys"
OWN = Tokens("s" * 64, 60)
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


class Issuer:
    """A JWKS endpoint that can be broken, and the tokens that it signs."""

    def __init__(self) -> None:
        self.broken = False
        self.asked = 0
        self.keys = [
            {**RSAAlgorithm.to_jwk(RSA_KEY.public_key(), as_dict=True), "kid": "r1"},
            {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "e1"},
            {"kty": "oct", "kid": "o1", "k": "c2VjcmV0"},
        ]

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        return httpx.Response(500) if self.broken else httpx.Response(200, json={"keys": self.keys})

    def token(
        self, key: Any = RSA_KEY, algorithm: str = "RS256", kid: str = "r1", **more: Any
    ) -> str:
        claims = {
            "iss": "https://issuer.test",
            "aud": "feedmesh",
            "sub": "u-1",
            "exp": int(time.time()) + 60,
            "preferred_username": "ada",
            **more,
        }
        return jwt.encode(claims, key, algorithm, headers={"kid": kid})


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def client(issuer: Issuer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(issuer.answer)) as client:
        yield client


@pytest.fixture
def users(database: Database) -> SqlUserStore:
    return SqlUserStore(database)


SETTINGS = Settings(jwks_url=URL, jwt_issuer="https://issuer.test", jwt_audience="feedmesh")


@pytest.fixture
def identities(client: httpx.AsyncClient, users: SqlUserStore) -> Identities:
    return Identities(OWN, ExternalIssuer(client, SETTINGS, users, fresh_id), users)


@pytest.mark.parametrize("signature", [(RSA_KEY, "RS256", "r1"), (EC_KEY, "ES256", "e1")])
async def test_a_subject_becomes_a_user_once(
    identities: Identities, issuer: Issuer, users: SqlUserStore, signature: tuple[Any, str, str]
) -> None:
    token = issuer.token(*signature, sub=f"once-{signature[2]}")
    user_id = await identities.user_id(token)
    assert await identities.user_id(token) == user_id
    user = (await users.get([user_id]))[user_id]
    assert user.username.startswith("ext-")
    assert user.display_name == "ada"
    assert issuer.asked == 1


async def test_a_subject_stays_the_same_user_after_a_restart(
    client: httpx.AsyncClient, issuer: Issuer, users: SqlUserStore
) -> None:
    ids = [
        await Identities(OWN, ExternalIssuer(client, SETTINGS, users, fresh_id), users).user_id(
            issuer.token(sub="stays")
        )
        for _ in range(2)
    ]
    assert len(set(ids)) == 1


async def test_own_tokens_go_on_being_accepted(
    identities: Identities, issuer: Issuer, users: SqlUserStore
) -> None:
    user_id = await identities.user_id(issuer.token(sub="both"))
    assert await identities.user_id(OWN.issue(user_id)) == user_id


def public_pem() -> str:
    return RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).hex()


@pytest.mark.parametrize(
    "token",
    [
        Issuer().token(aud="somebody-else"),
        Issuer().token(iss="https://evil.test"),
        Issuer().token(exp=1),
        Issuer().token(rsa.generate_private_key(65537, 2048)),
        Issuer().token(EC_KEY, "ES256", kid="r1"),
        Issuer().token(kid="unknown"),
        Issuer().token("c2VjcmV0" * 8, "HS256", kid="o1"),
        Issuer().token(public_pem(), "HS256", kid="r1"),
        jwt.encode({"sub": "u-1"}, "", "none", headers={"kid": "r1"}),
    ],
    ids=["aud", "iss", "exp", "key", "kind", "kid", "oct", "confusion", "none"],
)
async def test_any_other_token_is_refused(identities: Identities, token: str) -> None:
    with pytest.raises(Unauthenticated):
        await identities.user_id(token)


async def test_a_token_of_a_user_who_is_not_there_is_refused(identities: Identities) -> None:
    with pytest.raises(Unauthenticated, match="exist"):
        await identities.user_id(OWN.issue(fresh_id()))


async def test_an_issuer_that_is_away_is_a_matter_of_time(
    identities: Identities, issuer: Issuer
) -> None:
    issuer.broken = True
    with pytest.raises(Unavailable):
        await identities.user_id(issuer.token())


async def test_keys_are_asked_for_again_when_one_is_unknown_but_not_more_often_than_each_30_s(
    client: httpx.AsyncClient, issuer: Issuer
) -> None:
    now = 0.0
    keys = Keys(client, URL, lambda: now)
    rotated = issuer.keys.pop(1)
    await keys.get("r1")
    issuer.keys.append(rotated)
    now = 29.0
    with pytest.raises(Unauthenticated):
        await keys.get("e1")
    assert issuer.asked == 1
    now = 31.0
    assert (await keys.get("e1")).key_id == "e1"
    assert issuer.asked == 2


async def test_an_audience_is_required(client: httpx.AsyncClient, users: SqlUserStore) -> None:
    settings = Settings(jwks_url=URL, jwt_issuer="https://issuer.test")
    with pytest.raises(ValueError, match="FEED_JWT_AUDIENCE"):
        ExternalIssuer(client, settings, users, fresh_id)
