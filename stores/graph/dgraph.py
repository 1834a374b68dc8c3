"""The social graph in Dgraph, by gRPC.

A user's node has the user's id as its uid, so that Dgraph's own pages by `after` are pages in the
order of ids, and no node has to be looked up or made. Zero is asked once to lease all those uids.

A write is one request: a query, and mutations on the condition of what it found, in a transaction.
What must not happen at the same moment writes the same `feed.guard`: Dgraph then aborts one of the
two, which is tried again.
"""

import asyncio
import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import grpc
from opentelemetry.instrumentation.utils import suppress_instrumentation as untraced
from pydgraph import AsyncDgraphClientStub, Mutation, Operation, Request
from pydgraph.proto import api_pb2

from mesh import db_rpc, deadlines
from mesh.errors import (
    FailedPrecondition,
    FeedError,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from mesh.ids import MAX_ID, now_ms
from stores.events.codec import encode, new_event_id
from stores.events.port import Event, OutgoingRecord
from stores.graph.port import Neighborhood, Relation
from stores.outbox.port import Outbox

_log = logging.getLogger(__name__)

SCHEMA = """
feed.follows: [uid] @reverse @count .
feed.blocks: [uid] @reverse .
feed.pulled: bool .
feed.guard: int .
feed.unannounced: [string] .
"""
# The same as Dgraph tells it.
_PREDICATES: dict[str, dict[str, str | bool]] = {
    "feed.follows": {"type": "uid", "list": True, "reverse": True, "count": True},
    "feed.blocks": {"type": "uid", "list": True, "reverse": True},
    "feed.pulled": {"type": "bool"},
    "feed.guard": {"type": "int"},
    "feed.unannounced": {"type": "string", "list": True},
}
_READ_S, _WRITE_S, _BULK_S, _PREPARE_S = 2.0, 5.0, 30.0, 30.0
# Edges of one bulk transaction, and authors of one query.
_EDGES, _AUTHORS = 1_000, 1_000
# Followers of one page of edges; each has at least one.
_FOLLOWERS = 200
_LONGEST_PAUSE_S = 0.2
# An announcement that waits for so long was left behind by a process that ended.
LEFT_BEHIND_S = 60.0
# They wait on a few nodes of their own: to look for them among all users' would take ever longer.
_SHELVES = 64
_SWEEP_EVERY_S = 30.0
_MESSAGE_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that comes back must be found within a second, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

Rows = dict[str, list[dict[str, Any]]]


class DgraphGraphStore:
    """`stores.graph.port.GraphStore` in Dgraph 25 or newer.

    The outbox is in SQL, so an event cannot be written in the transaction of its edge. Instead the
    edge's transaction leaves the event on a node for that; it goes to the outbox and is then
    removed. What a crash leaves there, any process with this store announces a minute later.

    Args:
        url: dgraph://HOST:PORT, of gRPC.
        outbox: Where events go.

    Raises:
        ValueError: The URL is not of that form.
    """

    def __init__(self, url: str, outbox: Outbox) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
            raise ValueError("FEED_GRAPH_URL is not of the form dgraph://HOST:PORT")
        address = f"{parts.hostname}:{parts.port or 9080}"
        self._stub = AsyncDgraphClientStub(address, options=_MESSAGE_OPTIONS)
        self._database = db_rpc.database("dgraph", address)
        self._outbox = outbox
        self._preparing = asyncio.Lock()
        self._is_prepared = False
        self._sweeping: asyncio.Task[None] | None = None

    # -- writing ------------------------------------------------------------------------------

    async def follow(self, user_id: int, author_id: int, max_following: int, event: Event) -> bool:
        user, author = _uid(user_id), _uid(author_id)
        found = await self._change(
            "follow",
            user_id,
            event,
            when={
                "there": (user_id, f"uid_in(feed.follows, {author})"),
                "blocking": (user_id, f"uid_in(feed.blocks, {author})"),
                "blocked": (author_id, f"uid_in(feed.blocks, {user})"),
                "full": (user_id, f"ge(count(feed.follows), {max_following})"),
            },
            add={"feed.follows": {"uid": author}},
        )
        if "there" in found:
            return False
        if "blocking" in found or "blocked" in found:
            raise PermissionDenied("One of the two blocks the other.")
        if "full" in found:
            raise ResourceExhausted(f"Nobody may follow more than {max_following} authors.")
        return True

    async def unfollow(self, user_id: int, author_id: int, event: Event) -> bool:
        found = await self._change(
            "unfollow",
            user_id,
            event,
            unless={"there": (user_id, f"uid_in(feed.follows, {_uid(author_id)})")},
            remove=[(user_id, "feed.follows", author_id)],
        )
        return "there" in found

    async def block(self, user_id: int, target_id: int, event: Event) -> bool:
        target = _uid(target_id)
        found = await self._change(
            "block",
            user_id,
            event,
            when={"there": (user_id, f"uid_in(feed.blocks, {target})")},
            add={"feed.blocks": {"uid": target}},
            remove=[(user_id, "feed.follows", target_id), (target_id, "feed.follows", user_id)],
            guards=[target_id],
        )
        return "there" not in found

    async def unblock(self, user_id: int, target_id: int, event: Event) -> bool:
        found = await self._change(
            "unblock",
            user_id,
            event,
            unless={"there": (user_id, f"uid_in(feed.blocks, {_uid(target_id)})")},
            remove=[(user_id, "feed.blocks", target_id)],
        )
        return "there" in found

    async def follow_many(self, edges: Sequence[tuple[int, int]]) -> None:
        await self._add_edges("follow many", "feed.follows", edges)

    async def block_many(self, edges: Sequence[tuple[int, int]]) -> None:
        await self._add_edges("block many", "feed.blocks", edges)

    async def _add_edges(self, name: str, predicate: str, edges: Sequence[tuple[int, int]]) -> None:
        for start in range(0, len(edges), _EDGES):
            chunk = edges[start : start + _EDGES]
            lines = [f"<{_uid(one)}> <{predicate}> <{_uid(other)}> ." for one, other in chunk]
            mutation = Mutation(set_nquads="\n".join(lines).encode())
            await self._write(name, "", [mutation], _BULK_S, size=len(chunk))

    async def mark_pulled(self, author_id: int) -> None:
        mutation = Mutation(set_json=_json({"uid": _uid(author_id), "feed.pulled": True}))
        await self._write("mark pulled", "", [mutation])

    # -- reading ------------------------------------------------------------------------------

    async def neighborhood(self, user_id: int) -> Neighborhood:
        rows = await self._read(
            "neighborhood",
            f"""me(func: uid({_uid(user_id)})) {{
                feed.follows {{ uid feed.pulled }} feed.blocks {{ uid }} ~feed.blocks {{ uid }}
            }}""",
        )
        [me] = rows["me"] or [{}]
        follows = me.get("feed.follows", ())
        blocked = [*_ids(me.get("feed.blocks", ())), *_ids(me.get("~feed.blocks", ()))]
        return Neighborhood(
            following=_ids(follows),
            pulled=_ids(each for each in follows if each.get("feed.pulled")),
            blocked=list(dict.fromkeys(blocked)),
        )

    async def relation(self, user_id: int, other_id: int) -> Relation:
        user, other = _uid(user_id), _uid(other_id)
        rows = await self._read(
            "relation",
            f"""following(func: uid({user})) @filter(uid_in(feed.follows, {other})) {{ uid }}
            blocking(func: uid({user})) @filter(uid_in(feed.blocks, {other})) {{ uid }}
            blocked(func: uid({other})) @filter(uid_in(feed.blocks, {user})) {{ uid }}""",
        )
        return Relation(bool(rows["following"]), bool(rows["blocking"]), bool(rows["blocked"]))

    async def follower_counts(self, author_ids: Sequence[int]) -> dict[int, int]:
        counts = dict.fromkeys(author_ids, 0)
        for start in range(0, len(author_ids), _AUTHORS):
            uids = ", ".join(map(_uid, author_ids[start : start + _AUTHORS]))
            rows = await self._read(
                "follower counts", f"q(func: uid({uids})) {{ uid n: count(~feed.follows) }}"
            )
            counts.update((int(row["uid"], 16), row["n"]) for row in rows["q"])
        return counts

    async def following_count(self, user_id: int) -> int:
        rows = await self._read(
            "following count", f"q(func: uid({_uid(user_id)})) {{ n: count(feed.follows) }}"
        )
        return sum(row["n"] for row in rows["q"])

    async def followers_page(self, author_id: int, after: int, limit: int) -> list[int]:
        page = f"~feed.follows(first: {limit}, after: {_uid(after)}) {{ uid }}"
        rows = await self._read("followers page", f"q(func: uid({_uid(author_id)})) {{ {page} }}")
        # Nothing left is no row at all.
        return [user_id for row in rows["q"] for user_id in _ids(row["~feed.follows"])]

    async def is_pulled(self, author_id: int) -> bool:
        rows = await self._read("is pulled", f"q(func: uid({_uid(author_id)})) {{ feed.pulled }}")
        return any(row["feed.pulled"] for row in rows["q"])

    async def pulled_page(self, after: int, limit: int) -> list[int]:
        who = f"has(feed.pulled), first: {limit}, after: {_uid(after)}"
        return _ids((await self._read("pulled page", f"q(func: {who}) {{ uid }}"))["q"])

    async def follows_page(self, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        return await self._edges_page("follows page", "feed.follows", after, limit)

    async def blocks_page(self, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        return await self._edges_page("blocks page", "feed.blocks", after, limit)

    async def _edges_page(
        self, name: str, predicate: str, after: tuple[int, int], limit: int
    ) -> list[tuple[int, int]]:
        async def edges(who: str, most: int, above: int) -> list[tuple[int, int]]:
            others = f"{predicate}(first: {most}, after: {_uid(above)}) {{ uid }}"
            rows = await self._read(name, f"q(func: {who}) {{ uid {others} }}")
            return [
                (int(row["uid"], 16), other)
                for row in rows["q"]
                for other in _ids(row.get(predicate, ()))
            ]

        one, other = after
        rest = await edges(f"uid({_uid(one)})", limit, other)
        page = [edge for edge in rest if edge[0] == one]
        while len(page) < limit:
            left = limit - len(page)
            who = f"has({predicate}), first: {min(left, _FOLLOWERS)}, after: {_uid(one)}"
            # The limit holds for each of them; the last ones may be cut off.
            found = await edges(who, left, 0)
            if not found:
                break
            page += found
            one = found[-1][0]
        return page[:limit]

    # -- announcing ---------------------------------------------------------------------------

    async def announce_left_behind(self, older_than_s: float = LEFT_BEHIND_S) -> int:
        """Announces what other processes changed and did not announce; returns how much."""
        shelves = ", ".join(_shelf(each) for each in range(_SHELVES))
        rows = await self._read(
            "unannounced",
            f"q(func: uid({shelves})) @filter(has(feed.unannounced)) {{ uid feed.unannounced }}",
        )
        until_ms = now_ms() - older_than_s * 1000
        found = [(row["uid"], text) for row in rows["q"] for text in row["feed.unannounced"]]
        left = [(shelf, text) for shelf, text in found if json.loads(text)["at_ms"] <= until_ms]
        for shelf, text in left:
            await self._announce(shelf, text)
        return len(left)

    async def _announce(self, shelf: str, text: str) -> None:
        await self._outbox.add([_record(text)])
        removal = Mutation(delete_json=_json({"uid": shelf, "feed.unannounced": text}))
        await self._write("announced", "", [removal])

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            try:
                with untraced():
                    await self.announce_left_behind()
            except FeedError as error:
                _log.warning("could not announce what was left behind: %s", error)

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeping
        await self._stub.close()

    # -- requests -----------------------------------------------------------------------------

    async def _change(
        self,
        name: str,
        user_id: int,
        event: Event,
        *,
        when: Mapping[str, tuple[int, str]] | None = None,
        unless: Mapping[str, tuple[int, str]] | None = None,
        add: Mapping[str, Any] | None = None,
        remove: Sequence[tuple[int, str, int]] = (),
        guards: Sequence[int] = (),
    ) -> set[str]:
        """Adds to the user and removes edges, and announces it, if nothing of `when` holds and
        everything of `unless` does. Returns the names of what held.

        Args:
            name: Of the operation.
            user_id: Who changes something.
            event: Announces it.
            when, unless: By name, a user and what may hold of them.
            add: Predicates and values of the user.
            remove: Edges (from, predicate, to).
            guards: Whom else no other change may touch at the same moment.
        """
        conditions = {**(when or {}), **(unless or {})}
        blocks = [
            f"{held} as var(func: uid({_uid(who)})) @filter({what}) "
            f"q_{held}(func: uid({held})) {{ uid }} "
            for held, (who, what) in conditions.items()
        ]
        tests = [f"eq(len({each}), 0)" for each in when or ()]
        tests += [f"gt(len({each}), 0)" for each in unless or ()]
        text = _text(encode(event, new_event_id()))
        guard = random.getrandbits(62)
        mutation = Mutation(
            set_json=_json(
                [
                    {"uid": _uid(user_id), "feed.guard": guard} | dict(add or {}),
                    {"uid": _shelf(user_id), "feed.unannounced": text},
                    *({"uid": _uid(each), "feed.guard": guard} for each in guards),
                ]
            ),
            delete_json=_json([{"uid": _uid(a), edge: {"uid": _uid(b)}} for a, edge, b in remove]),
            cond=f"@if({' AND '.join(tests)})",
        )
        rows = await self._write(name, "".join(blocks), [mutation])
        found = {each for each in conditions if rows[f"q_{each}"]}
        if not found & set(when or ()) and found >= set(unless or ()):
            try:
                await self._announce(_shelf(user_id), text)
            except FeedError as error:
                # The change is made, and its announcement is kept with it.
                _log.warning("%s is announced later: %s", name, error)
        return found

    async def _read(self, name: str, query: str) -> Rows:
        return await self._ask(name, Request(query=f"{{ {query} }}", read_only=True), _READ_S, {})

    async def _write(
        self,
        name: str,
        query: str,
        mutations: Sequence[Mutation],
        at_most_s: float = _WRITE_S,
        size: int = 1,
    ) -> Rows:
        """In one transaction, again as long as others are in its way. Raises `Unavailable`."""
        request = Request(
            query=f"{{ {query} }}" if query else "", mutations=mutations, commit_now=True
        )
        more = {"db.operation.batch.size": size} if size > 1 else {}
        attempt = 0
        with deadlines.within(at_most_s):
            while True:
                try:
                    return await self._ask(name, request, at_most_s, more)
                except db_rpc.Conflict:
                    attempt += 1
                pause_s = random.uniform(0, min(0.01 * 2**attempt, _LONGEST_PAUSE_S))
                if deadlines.remaining(at_most_s) < pause_s:
                    raise Unavailable("dgraph is busy with other changes of the same users")
                await asyncio.sleep(pause_s)

    async def _ask(
        self, name: str, request: Request, at_most_s: float, more: Mapping[str, int]
    ) -> Rows:
        await self._prepare()
        async with db_rpc.calling(self._database, name, f"{name} feed", at_most_s, more) as headers:
            answer = await self._stub.query(
                request,
                timeout=deadlines.remaining(at_most_s),
                metadata=list(headers.items()),
            )
        rows: Rows = json.loads(answer.json) if answer.json else {}
        return rows

    async def _prepare(self) -> None:
        """Makes the schema and leases the uids, once a process."""
        if self._is_prepared:
            return
        async with self._preparing:
            if self._is_prepared:
                return
            if not await self._has_schema():
                async with db_rpc.calling(self._database, "alter", "alter feed", _PREPARE_S, {}):
                    await self._stub.alter(Operation(schema=SCHEMA))
            # Another process may lease at the same moment; the second try sees that.
            if not await self._has_leased() and not await self._has_leased():
                raise Unavailable("dgraph does not lease uids now")
            self._is_prepared = True
            if self._sweeping is None:
                self._sweeping = asyncio.create_task(self._sweep())

    async def _has_schema(self) -> bool:
        """Asked first, because altering it, even into what it is, gets in the way of others."""
        query = f"schema(pred: [{', '.join(_PREDICATES)}]) {{ type list reverse count }}"
        async with db_rpc.calling(self._database, "schema", "schema feed", _PREPARE_S, {}):
            answer = await self._stub.query(
                Request(query=query, read_only=True), timeout=_PREPARE_S
            )
        found = {row.pop("predicate"): row for row in json.loads(answer.json).get("schema", ())}
        return found == _PREDICATES

    async def _has_leased(self) -> bool:
        """Whether every id can be a uid; leases what is missing."""
        async with db_rpc.calling(self._database, "lease", "lease uids", _PREPARE_S, {}):
            try:
                next_uid = (await self._lease(1)).end
                if next_uid < MAX_ID:
                    await self._lease(MAX_ID - next_uid)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                    raise FailedPrecondition("Dgraph is older than version 25") from None
                if "limit has reached" not in (error.details() or ""):
                    raise
                return False
        return True

    async def _lease(self, how_many: int) -> api_pb2.AllocateIDsResponse:
        request = api_pb2.AllocateIDsRequest(how_many=how_many, lease_type=api_pb2.UID)
        answer: api_pb2.AllocateIDsResponse = await self._stub.stub.AllocateIDs(
            request, timeout=_PREPARE_S
        )
        return answer


def _uid(user_id: int) -> str:
    return hex(user_id)


def _shelf(user_id: int) -> str:
    """The node on which announcements of a user's changes wait."""
    return hex(1 + user_id % _SHELVES)


def _ids(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    return [int(row["uid"], 16) for row in rows]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _text(record: OutgoingRecord) -> str:
    return json.dumps(
        {
            "at_ms": now_ms(),
            "topic": record.topic,
            "key": record.key,
            "value": record.value.decode(),
            "headers": dict(record.headers),
        }
    )


def _record(text: str) -> OutgoingRecord:
    said = json.loads(text)
    return OutgoingRecord(
        topic=said["topic"], key=said["key"], value=said["value"].encode(), headers=said["headers"]
    )
