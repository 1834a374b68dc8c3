"""Feast's feature server over HTTP, and the views of `features/views.py` as rows."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from mesh import deadlines
from mesh.breaker import Breaker
from mesh.errors import DeadlineExceeded, Internal, Unavailable
from mesh.http_spans import post

USER_STATS = "user_stats"
POST_STATS = "post_stats"
AFFINITY = "user_author_affinity"
# Of a post that is no more.
NO_AUTHOR = 0

READ_TIMEOUT_S = 0.15
# Of what is left of the request's deadline; the rest is for going on without.
_SHARE = 0.8
# Feast itself waits 8 s for a Redis that is away.
_PUSH_TIMEOUT_S = 15.0
# Less than Feast keeps an idle connection, so that it is never the one to close it.
_IDLE_S = 15.0
_CONNECTIONS = 64


class Refused(Internal):
    """Feast answered, and not with success."""


class FeastClient:
    """One process's connections to a feature server, and whether they are worth trying.

    Args:
        url: http:// or https://.
        read_timeout_s: Seconds that a read may take in all, of whatever the request has left.
    """

    def __init__(self, url: str, read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            # Backs up ours, which are for whole calls; httpx knows them only for their parts.
            timeout=2 * _PUSH_TIMEOUT_S,
            limits=httpx.Limits(max_connections=_CONNECTIONS, keepalive_expiry=_IDLE_S),
        )
        self._read_timeout_s = read_timeout_s
        self._breaker = Breaker("features")

    async def read(
        self, view: str, features: Sequence[str], entities: Mapping[str, Sequence[int]]
    ) -> list[tuple[Any, ...]]:
        """Rows of the features' values, one an entity, in the order asked; None for an unknown one.

        Args:
            view: Whose features they are.
            features: Their names.
            entities: Columns of the join keys' values.

        Raises:
            Unavailable: Feast is away, or has been and is left alone for a while.
            DeadlineExceeded: It did not answer in time.
            Internal: It answered wrongly.
        """
        body = {
            "features": [f"{view}:{name}" for name in features],
            "entities": {key: list(values) for key, values in entities.items()},
            # A feature may have the name of a join key.
            "full_feature_names": True,
        }
        timeout_s = deadlines.remaining(self._read_timeout_s / _SHARE) * _SHARE
        with self._breaker.guard():
            answer = await self._post("/get-online-features", view, body, timeout_s)
            count = len(next(iter(entities.values())))
            return _rows(answer, [f"{view}__{name}" for name in features], count)

    async def push(self, view: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Pushes whole rows, online and offline.

        Raises:
            Unavailable, DeadlineExceeded: Feast cannot be reached.
            Refused: It does not take them; perhaps because its own Redis is away.
        """
        body = {"push_source_name": f"{view}_push", "df": columns, "to": "online_and_offline"}
        await self._post("/push", view, body, _PUSH_TIMEOUT_S)

    async def _post(self, path: str, view: str, body: object, timeout_s: float) -> httpx.Response:
        try:
            content = json.dumps(body, allow_nan=False).encode()
        except ValueError as error:
            raise Refused(f"Features of {view} are no JSON: {error}.") from error
        try:
            async with asyncio.timeout(timeout_s):
                answer = await post(self._client, path, content, {"feed.features.view": view})
        except TimeoutError:
            raise DeadlineExceeded("Feast took too long.") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"Feast cannot be used now ({type(error).__name__}).") from error
        if not answer.is_success:
            raise Refused(f"Feast answered {answer.status_code}.")
        return answer

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


def _rows(answer: httpx.Response, names: Sequence[str], count: int) -> list[tuple[Any, ...]]:
    """The columns by name, as rows: their order is another in each of Feast's processes."""
    try:
        body = answer.json()
        results = dict(zip(body["metadata"]["feature_names"], body["results"], strict=True))
        columns = [results[name]["values"] for name in names]
    except (ValueError, KeyError, TypeError) as error:
        raise Internal(f"Feast answered something else ({type(error).__name__}).") from error
    if any(not isinstance(column, list) or len(column) != count for column in columns):
        raise Internal("Feast answered with another number of rows.")
    return list(zip(*columns, strict=True))
