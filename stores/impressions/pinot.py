"""The long memory of impressions in Pinot, which takes them from the event log's topic by itself.

What was recorded is seen some moments later. A showing that the log has twice is counted once,
because queries tell them apart by their `event_id`.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from feed.v1.events_pb2 import ImpressionEvent
from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation
from pinotdb import connect_async, exceptions

from mesh.db_spans import Attributes, Database, Operation
from mesh.errors import Unavailable
from stores.events import codec
from stores.events.port import Event, EventLog, Topic
from stores.impressions.pinot_table import NONE, TABLE
from stores.impressions.port import Impression, Seen

# Of a reader's own few segments.
_READER_S = 2.0
# Of all segments there are, for an export.
_PAGE_S = 20.0
# Beyond the query's own limit, for the way.
_WAY_S = 0.5
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_COLUMNS = "event_id, user_id, post_id, author_id, seen_at_ms, position, feed_id, dwell_ms"

_SEEN = """
SELECT post_id, DISTINCTCOUNT(event_id), MAX(seen_at_ms) FROM {table}
WHERE user_id = %(user_id)s AND seen_at_ms >= %(since_ms)s
GROUP BY post_id ORDER BY MAX(seen_at_ms) DESC, post_id DESC LIMIT %(limit)s
"""
_DWELT = f"""
SELECT DISTINCT {_COLUMNS} FROM {{table}}
WHERE user_id = %(user_id)s AND seen_at_ms >= %(since_ms)s AND dwell_ms >= %(min_dwell_ms)s
ORDER BY seen_at_ms DESC, post_id DESC LIMIT %(limit)s
"""  # noqa: S608  parameters are numbers
# The text is compared here: as a bound, Pinot takes '*' to be none at all.
_PAGE = f"""
SELECT DISTINCT {_COLUMNS} FROM {{table}} WHERE seen_at_ms >= %(seen_at_ms)s
ORDER BY seen_at_ms, event_id LIMIT %(limit)s
"""  # noqa: S608  as above


@dataclass(frozen=True, slots=True)
class PinotAddress:
    """Where the table is: a broker of Pinot's, and the table's name."""

    host: str
    port: int
    table: str = TABLE

    @classmethod
    def parse(cls, url: str) -> Self:
        """The address of `pinot://host[:port][/table]`.

        Raises:
            ValueError: It has no such form.
        """
        parts = urlsplit(url)
        table = parts.path.strip("/") or TABLE
        if parts.scheme != "pinot" or not parts.hostname or not _NAME.fullmatch(table):
            raise ValueError(f"{url} is not pinot://host[:port][/table]")
        return cls(parts.hostname, parts.port or 8099, table)


class PinotImpressionStore:
    """`stores.impressions.port.ImpressionStore` in Pinot.

    Args:
        address: Where the table is; see `stores.impressions.pinot_table`.
        events: The event log that the table reads.
    """

    reads_the_log = True

    def __init__(self, address: PinotAddress, events: EventLog) -> None:
        self._address = address
        self._events = events
        self._session = httpx.AsyncClient()
        self._pinot = connect_async(host=address.host, port=address.port, session=self._session)
        self._database = Database(
            "pinot",
            {"server.address": address.host, "server.port": address.port},
            _status_code,
        )

    async def record(self, impressions: Sequence[Impression]) -> None:
        """Announces them, as the gateway does: Pinot takes them from there."""
        await self._events.publish(
            [
                codec.encode(Event(Topic.IMPRESSIONS, each.user_id, _message(each)), each.event_id)
                for each in impressions
            ]
        )

    async def seen(self, user_id: int, since_ms: int, limit: int) -> list[Seen]:
        parameters = {"user_id": user_id, "since_ms": since_ms, "limit": limit}
        rows = await self._query(_SEEN, parameters, _READER_S)
        # A maximum is a double there, which holds any such time.
        return [Seen(post_id, count, int(last_ms)) for post_id, count, last_ms in rows]

    async def dwelt(
        self, user_id: int, min_dwell_ms: int, since_ms: int, limit: int
    ) -> list[Impression]:
        parameters: dict[str, int] = {
            "user_id": user_id,
            "since_ms": since_ms,
            "min_dwell_ms": max(min_dwell_ms, 0),
            "limit": limit,
        }
        return [_impression(row) for row in await self._query(_DWELT, parameters, _READER_S)]

    async def page(self, after: tuple[int, str], limit: int) -> list[Impression]:
        fetched = limit
        while True:
            parameters = {"seen_at_ms": after[0], "limit": fetched}
            rows = await self._query(_PAGE, parameters, _PAGE_S)
            later = [each for each in map(_impression, rows) if _place(each) > _placed(*after)]
            # Of one millisecond there may be more than a page.
            if len(later) >= limit or len(rows) < fetched:
                return later[:limit]
            fetched *= 2

    async def purge(self, before_ms: int) -> int:
        """Nothing: the table's retention does it."""
        return 0

    async def close(self) -> None:
        await self._session.aclose()

    async def _query(
        self, template: str, parameters: Mapping[str, int], limit_s: float
    ) -> list[list[Any]]:
        """The rows of the whole answer.

        Raises:
            Unavailable: Pinot is away or late, gives an error, or has only a part of the answer.
        """
        text = " ".join(template.format(table=self._address.table).split())
        sql = f"SET timeoutMs = {int(limit_s * 1000)}; {text}"
        numbers = require_numbers(parameters)

        def describe() -> tuple[str, Attributes]:
            table = self._address.table
            return f"SELECT {table}", {"db.query.text": text, "db.collection.name": table}

        operation = (
            Operation(self._database, "SELECT", describe)
            if is_instrumentation_enabled()
            else nullcontext()
        )
        # What goes wrong is told without the query, which has a reader's id.
        try:
            async with asyncio.timeout(limit_s + _WAY_S):
                with operation, suppress_instrumentation():
                    cursor = await self._pinot.cursor().execute(
                        sql, numbers, timeout=limit_s + _WAY_S
                    )
                    _require_whole(cursor.query_stats)
        except TimeoutError:
            raise Unavailable(f"Pinot did not answer within {limit_s:g} s") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"Pinot cannot be asked: {type(error).__name__}") from None
        except exceptions.Error as error:
            reason = _status_code(error) or type(error).__name__
            raise Unavailable(f"Pinot did not answer but with an error: {reason}") from None
        rows: list[list[Any]] = cursor.fetchall()
        return rows


def require_numbers(parameters: Mapping[str, object]) -> dict[str, int]:
    """The parameters, which may stand in a statement as they are: whole numbers of 64 bits.

    pinotdb writes parameters into the statement, some of them ("*", None) without quotes.

    Raises:
        TypeError: One is no number.
        OverflowError: One is too large.
    """
    numbers: dict[str, int] = {}
    for name, value in parameters.items():
        if type(value) is not int:
            raise TypeError(f"{name} is no whole number")
        value.to_bytes(8, "big", signed=True)
        numbers[name] = value
    return numbers


def _place(impression: Impression) -> tuple[int, bytes]:
    return _placed(impression.seen_at_ms, impression.event_id)


def _placed(seen_at_ms: int, event_id: str) -> tuple[int, bytes]:
    """Where a page has it: Pinot compares texts as Java does, by their UTF-16."""
    return seen_at_ms, event_id.encode("utf-16-be", "surrogatepass")


def _require_whole(stats: Mapping[str, Any]) -> None:
    if stats.get("partialResult") or stats.get("numGroupsLimitReached"):
        raise exceptions.OperationalError("a part of the answer is missing")


def _status_code(error: BaseException) -> str:
    """Pinot's number of the error: 190 where there is no such table."""
    found = re.search(r"'errorCode': (\d+)", str(error))
    return found[1] if found and isinstance(error, exceptions.Error) else ""


def _message(impression: Impression) -> ImpressionEvent:
    return ImpressionEvent(
        user_id=impression.user_id,
        post_id=impression.post_id,
        author_id=impression.author_id,
        seen_at_ms=impression.seen_at_ms,
        position=impression.position,
        feed_id=impression.feed_id,
        dwell_ms=impression.dwell_ms,
    )


def _impression(row: Sequence[Any]) -> Impression:
    event_id, user_id, post_id, author_id, seen_at_ms, position, feed_id, dwell_ms = row
    return Impression(
        event_id=event_id,
        user_id=user_id,
        post_id=post_id,
        author_id=author_id,
        seen_at_ms=seen_at_ms,
        position=None if position == NONE else position,
        feed_id=feed_id,
        dwell_ms=None if dwell_ms == NONE else dwell_ms,
    )
