"""The event log on Redis streams: one stream a topic, one consumer group a group.

A group reads a topic by one member at a time, the one that holds the topic's lease; so records of
one key are never handled out of order by two. Others wait and take over when the lease is given
back, or has run out. (Kafka does better: its partitions let members share a topic.)

A stream, and the leases on it, share a hash tag: reading under a lease is one script on one slot,
and a member that was paused past its lease cannot take a record by mistake.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from uuid import uuid4

from opentelemetry.instrumentation.utils import suppress_instrumentation
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from mesh.errors import Unavailable
from mesh.redis_spans import LuaScript, server
from stores.events.port import OutgoingRecord, Record, Subscription, Topic
from stores.events.spans import sending
from stores.redis_client import PIPELINE, redis_errors, run_script

# How long a group waits for a member that was killed. Live ones renew their leases by themselves,
# so handling a batch may take longer.
LEASE_MS = 3_000
RENEW_EVERY_S = 1.0
TAKE_OVER_POLL_S = 0.2
# Shorter than the client's read time-out.
BLOCK_MS = 500
# Records that every group has committed are kept for so long, for whoever looks into the log, and
# for a group that is only just being started for the first time.
KEEP_S = 3_600
# An hour of served feeds, 30 KB each, would fill the memory; the log of feeds has them.
_KEEP_SHORTER_S = {Topic.SERVED: 60}
TRIM_EVERY_S = 10.0
_FROM_START = "0"

# KEYS: the stream, the lease. ARGV: group, member, lease in ms, number of records, and what to
# read: ">" for new ones, or the id after which uncommitted ones are read. All members read under
# one consumer name, so whoever has just got the lease begins with all that others left uncommitted.
# Returns nothing to a member without the lease, else: what to read next, the newest id of the
# stream, the records, and how often each was delivered (nothing for new ones).
_READ = LuaScript(
    "read events",
    """
local stream, group, cursor = KEYS[1], ARGV[1], ARGV[5]
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then return false end
if not holder then cursor = '0' end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])

local function read(from)
  local reply = redis.call('XREADGROUP', 'GROUP', group, 'member', 'COUNT', ARGV[4],
                           'STREAMS', stream, from)
  return reply and reply[1][2] or {}
end

local records = read(cursor)
local deliveries = {}
if cursor ~= '>' and #records == 0 then
  cursor = '>'
  records = read(cursor)
elseif cursor ~= '>' then
  cursor = records[#records][1]
  local pending = redis.call('XPENDING', stream, group, records[1][1], cursor, #records, 'member')
  for i, entry in ipairs(pending) do deliveries[i] = entry[4] end
  -- Deleted by hand while they were uncommitted.
  for _, record in ipairs(records) do
    if not record[2] then redis.call('XACK', stream, group, record[1]) end
  end
end
local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
return {cursor, newest and newest[1] or '0-0', records, deliveries}
""",
)

# KEYS: the lease. ARGV: member, lease in ms; 0 gives it back.
_RENEW = LuaScript(
    "renew lease",
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""",
)

# KEYS: the stream. ARGV: seconds to keep. Cuts the stream below the oldest record that some group
# has not committed, or that is too young. Ids are "milliseconds-sequence".
_TRIM = LuaScript(
    "trim events",
    """
local function before(a, b)
  local a_ms, a_seq = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_seq = string.match(b, '(%d+)-(%d+)')
  if a_ms ~= b_ms then return tonumber(a_ms) < tonumber(b_ms) end
  return tonumber(a_seq) < tonumber(b_seq)
end
local now = redis.call('TIME')
local floor = string.format('%.0f-0', (now[1] - ARGV[1]) * 1000 + math.floor(now[2] / 1000))
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
  local oldest = group['last-delivered-id']
  if group['pending'] > 0 then oldest = redis.call('XPENDING', KEYS[1], group['name'])[2] end
  if before(oldest, floor) then floor = oldest end
end
return redis.call('XTRIM', KEYS[1], 'MINID', floor)
""",
)


class RedisEventLog:
    """`stores.events.port.EventLog` on Redis streams.

    Args:
        client: Gives up to a connection a topic to each subscription while that waits.
        keep_s: Seconds for which committed records are kept, served feeds for 60 at most. A group
            that nobody reads any more keeps its records until `XGROUP DESTROY`.
    """

    system = "redis"

    def __init__(self, client: Redis, keep_s: int = KEEP_S) -> None:
        self._client = client
        self._keep_s = keep_s

    @property
    def server(self) -> dict[str, str | int]:
        return server(self._client.connection_pool.connection_kwargs)

    async def publish(self, records: Sequence[OutgoingRecord]) -> None:
        """As the port says; after an error, some of the records may be in the log."""
        with sending(self, records) as sent:
            await self._append(sent.records)

    async def _append(self, records: Sequence[OutgoingRecord]) -> None:
        for start in range(0, len(records), PIPELINE):
            with redis_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for record in records[start : start + PIPELINE]:
                        pipe.xadd(
                            _stream(record.topic),
                            {
                                "key": record.key,
                                "value": record.value,
                                "headers": json.dumps(dict(record.headers)),
                            },
                        )
                    await pipe.execute()

    async def subscribe(self, group: str, topics: Sequence[Topic]) -> Subscription:
        subscription = RedisSubscription(self._client, group, topics, self._keep_s)
        await subscription.join()
        return subscription

    async def bury(self, record: Record, reason: str) -> None:
        """As the port says; the span is the caller's, who knows why."""
        headers = {**record.headers, "dead_reason": reason}
        dead = OutgoingRecord(f"{record.topic}.dead", record.key, record.value, headers)
        await self._append([dead])

    async def lag(self, group: str, topic: Topic) -> int:
        stream = _stream(topic)
        with redis_errors():
            length = int(await self._client.xlen(stream))
            if length == 0:
                return 0
            for known in await self._client.xinfo_groups(stream):
                if known["name"] == group.encode():
                    # Unknown only when somebody has deleted single records by hand.
                    unread = length if known["lag"] is None else known["lag"]
                    return int(unread) + int(known["pending"])
        return length

    async def close(self) -> None:
        """Nothing to do: the client is its opener's."""


@dataclass(slots=True)
class _Reading:
    """Where a subscription is in one topic."""

    topic: Topic
    stream: str
    lease: str
    cursor: str = _FROM_START
    newest: str = "0-0"
    held: bool = False
    # Waits for something beyond `newest`. It takes no record, so it may be dropped at any time.
    news: "asyncio.Task[object] | None" = None


class RedisSubscription:
    """`stores.events.port.Subscription` on Redis streams.

    After a failed or cancelled `read`, all that is uncommitted comes again, because the answer that
    was lost may have carried records.
    """

    def __init__(self, client: Redis, group: str, topics: Sequence[Topic], keep_s: int) -> None:
        self._client = client
        self._group = group
        self._keep_s = keep_s
        self._member = uuid4().hex
        self._readings = [
            _Reading(topic, _stream(topic), f"{_stream(topic)}:lease:{group}") for topic in topics
        ]
        self._trim_at = 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Makes the group where it is missing, and begins to keep the leases that reads take."""
        await self._make_groups()
        self._renewing = asyncio.create_task(self._renew_forever(), name=f"leases {self._group}")

    async def _make_groups(self) -> None:
        for reading in self._readings:
            with redis_errors():
                try:
                    await self._client.xgroup_create(
                        reading.stream, self._group, id="0", mkstream=True
                    )
                except ResponseError as error:
                    if not str(error).startswith("BUSYGROUP"):
                        raise

    async def read(self, max_records: int, wait_s: float) -> list[Record]:
        """As the port says; empty while another member holds the leases."""
        now = asyncio.get_running_loop().time
        until = now() + wait_s
        while True:
            records = await self._take(max_records)
            left_s = until - now()
            if records or left_s <= 0:
                return records
            await self._wait_for_news(left_s)

    async def _take(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        try:
            for reading in self._readings:
                if len(records) < max_records:
                    records += await self._take_from(reading, max_records - len(records))
        except BaseException:
            for reading in self._readings:
                reading.cursor = _FROM_START
            raise
        # Who was read last comes first, so that a busy topic does not starve the others.
        self._readings.append(self._readings.pop(0))
        return records

    async def _take_from(self, reading: _Reading, max_records: int) -> list[Record]:
        arguments = (self._group, self._member, LEASE_MS, max_records, reading.cursor)
        keys = [reading.stream, reading.lease]
        with redis_errors():
            try:
                reply = await run_script(self._client, _READ, keys, *arguments)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                # The server has lost its data, and the group with it.
                await self._make_groups()
                reply = await run_script(self._client, _READ, keys, *arguments)
        reading.held = reply is not None
        if reply is None:
            return []
        cursor, newest, entries, deliveries = reply
        reading.cursor, reading.newest = cursor.decode(), newest.decode()
        counts = deliveries or [1] * len(entries)
        return [
            _record(reading.topic, position, fields, count - 1)
            for (position, fields), count in zip(entries, counts, strict=True)
            if fields
        ]

    async def _wait_for_news(self, limit_s: float) -> None:
        """Returns when there may be something to read, or soon enough to look again."""
        for reading in self._readings:
            if reading.held and reading.news is None:
                reading.news = asyncio.create_task(self._news(reading))
        waiting = [reading.news for reading in self._readings if reading.news is not None]
        pause_s = min(limit_s, BLOCK_MS / 1000)
        if not all(reading.held for reading in self._readings):
            pause_s = min(pause_s, TAKE_OVER_POLL_S)
        if waiting:
            await asyncio.wait(waiting, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(pause_s)
        for reading in self._readings:
            if reading.news is not None and reading.news.done():
                reading.news = None

    async def _news(self, reading: _Reading) -> None:
        # A failure shows at the next read, if it still is one by then; and waiting is no work of
        # whoever reads.
        with suppress(RedisError, OSError), suppress_instrumentation():
            await self._client.xread({reading.stream: reading.newest}, count=1, block=BLOCK_MS)

    def holding(self) -> AbstractAsyncContextManager[None]:
        """As the port says; a live member's lease is renewed, so nobody takes its records."""
        return nullcontext()

    async def commit(self, records: Sequence[Record]) -> None:
        done: dict[str, list[str]] = defaultdict(list)
        for record in records:
            done[record.topic].append(record.position)
        for topic, positions in done.items():
            with redis_errors():
                await self._client.xack(_stream(topic), self._group, *positions)
        now = asyncio.get_running_loop().time()
        if now >= self._trim_at:
            self._trim_at = now + TRIM_EVERY_S
            await self._trim()

    async def _trim(self) -> None:
        for reading in self._readings:
            with redis_errors():
                keep_s = min(self._keep_s, _KEEP_SHORTER_S.get(reading.topic, self._keep_s))
                await run_script(self._client, _TRIM, [reading.stream], keep_s)

    async def _renew_forever(self) -> None:
        # The leases belong to no request, whichever one it was that subscribed.
        with suppress_instrumentation():
            while True:
                await asyncio.sleep(RENEW_EVERY_S)
                with suppress(Unavailable):
                    await self._renew(LEASE_MS)

    async def _renew(self, lease_ms: int) -> None:
        for reading in self._readings:
            with redis_errors():
                await run_script(self._client, _RENEW, [reading.lease], self._member, lease_ms)

    async def close(self) -> None:
        """As the port says. Where Redis is away, the leases run out by themselves."""
        tasks = [self._renewing, *(reading.news for reading in self._readings)]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        with suppress(Unavailable):
            await self._renew(0)


def _stream(topic: str) -> str:
    return f"events:{{{topic}}}"


def _record(topic: str, position: bytes, flat_fields: Sequence[bytes], redeliveries: int) -> Record:
    fields: Mapping[bytes, bytes] = dict(zip(flat_fields[::2], flat_fields[1::2], strict=True))
    return Record(
        topic=str(topic),
        key=fields[b"key"].decode(),
        value=fields[b"value"],
        position=position.decode(),
        headers=json.loads(fields[b"headers"]),
        redeliveries=redeliveries,
    )
