"""The social graph in SQL."""

from collections.abc import Sequence
from functools import partial

from sqlalchemy import ColumnElement, Select, and_, delete, func, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import PermissionDenied, ResourceExhausted
from stores.events.port import Event
from stores.graph.port import Neighborhood, Relation
from stores.outbox.sql import append
from stores.sql.database import Database, beyond, chunks, insert_ignore, insert_many
from stores.sql.tables import blocks, follows, pulled_authors


class SqlGraphStore:
    """`stores.graph.port.GraphStore` in SQL; events go to the outbox of the same transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def follow(self, user_id: int, author_id: int, max_following: int, event: Event) -> bool:
        edge = {"follower_id": user_id, "author_id": author_id}

        async def add(connection: AsyncConnection) -> bool:
            await _take_turn(connection, user_id)
            added = await connection.execute(insert_ignore(follows), edge)
            if added.rowcount == 0:
                return False
            if await _blocked(connection, user_id, author_id):
                raise PermissionDenied("One of the two blocks the other.")
            # Locking makes TiDB count what is there now, not when the transaction began.
            count = _count_following(user_id).with_for_update()
            if (await connection.scalar(count) or 0) > max_following:
                raise ResourceExhausted(f"Nobody may follow more than {max_following} authors.")
            await append(connection, event)
            return True

        return await self._db.write(add)

    async def unfollow(self, user_id: int, author_id: int, event: Event) -> bool:
        async def remove(connection: AsyncConnection) -> bool:
            removed = await connection.execute(delete(follows).where(_edge(user_id, author_id)))
            if removed.rowcount == 0:
                return False
            await append(connection, event)
            return True

        return await self._db.write(remove)

    async def block(self, user_id: int, target_id: int, event: Event) -> bool:
        block = {"user_id": user_id, "target_id": target_id}

        async def add(connection: AsyncConnection) -> bool:
            added = await connection.execute(insert_ignore(blocks), block)
            if added.rowcount == 0:
                return False
            for edge in (_edge(user_id, target_id), _edge(target_id, user_id)):
                await connection.execute(delete(follows).where(edge))
            await append(connection, event)
            return True

        return await self._db.write(add)

    async def unblock(self, user_id: int, target_id: int, event: Event) -> bool:
        async def remove(connection: AsyncConnection) -> bool:
            removed = await connection.execute(delete(blocks).where(_block(user_id, target_id)))
            if removed.rowcount == 0:
                return False
            await append(connection, event)
            return True

        return await self._db.write(remove)

    async def follow_many(self, edges: Sequence[tuple[int, int]]) -> None:
        for chunk in chunks(edges):
            rows = [
                {"follower_id": user_id, "author_id": author_id} for user_id, author_id in chunk
            ]
            await self._db.write(partial(insert_many, table=follows, rows=rows))

    async def block_many(self, edges: Sequence[tuple[int, int]]) -> None:
        for chunk in chunks(edges):
            rows = [{"user_id": user_id, "target_id": target_id} for user_id, target_id in chunk]
            await self._db.write(partial(insert_many, table=blocks, rows=rows))

    async def neighborhood(self, user_id: int) -> Neighborhood:
        # One statement, because every feed waits for it.
        around = union_all(
            select(
                literal("following").label("relation"), follows.c.author_id.label("other_id")
            ).where(follows.c.follower_id == user_id),
            select(literal("pulled"), follows.c.author_id)
            .join_from(follows, pulled_authors, follows.c.author_id == pulled_authors.c.author_id)
            .where(follows.c.follower_id == user_id),
            select(literal("blocked"), blocks.c.target_id).where(blocks.c.user_id == user_id),
            select(literal("blocked"), blocks.c.user_id).where(blocks.c.target_id == user_id),
        )
        found: dict[str, list[int]] = {"following": [], "pulled": [], "blocked": []}
        async with self._db.read() as connection:
            for relation, other_id in await connection.execute(around):
                found[relation].append(other_id)
        return Neighborhood(
            following=found["following"],
            pulled=found["pulled"],
            blocked=list(dict.fromkeys(found["blocked"])),
        )

    async def relation(self, user_id: int, other_id: int) -> Relation:
        query = select(
            select(follows).where(_edge(user_id, other_id)).exists(),
            select(blocks).where(_block(user_id, other_id)).exists(),
            select(blocks).where(_block(other_id, user_id)).exists(),
        )
        async with self._db.read() as connection:
            following, blocking, blocked_by = (await connection.execute(query)).one()
        return Relation(bool(following), bool(blocking), bool(blocked_by))

    async def follower_counts(self, author_ids: Sequence[int]) -> dict[int, int]:
        counts = dict.fromkeys(author_ids, 0)
        query = select(follows.c.author_id, func.count()).group_by(follows.c.author_id)
        async with self._db.read() as connection:
            for chunk in chunks(author_ids):
                rows = await connection.execute(query.where(follows.c.author_id.in_(chunk)))
                counts.update((author_id, count) for author_id, count in rows)
        return counts

    async def following_count(self, user_id: int) -> int:
        async with self._db.read() as connection:
            return await connection.scalar(_count_following(user_id)) or 0

    async def followers_page(self, author_id: int, after: int, limit: int) -> list[int]:
        query = (
            select(follows.c.follower_id)
            .where(follows.c.author_id == author_id, follows.c.follower_id > after)
            .order_by(follows.c.follower_id)
            .limit(limit)
        )
        async with self._db.read() as connection:
            return list(await connection.scalars(query))

    async def mark_pulled(self, author_id: int) -> None:
        row = {"author_id": author_id}
        await self._db.write(partial(insert_many, table=pulled_authors, rows=[row]))

    async def is_pulled(self, author_id: int) -> bool:
        query = select(pulled_authors).where(pulled_authors.c.author_id == author_id)
        async with self._db.read() as connection:
            return (await connection.execute(query)).one_or_none() is not None

    async def pulled_page(self, after: int, limit: int) -> list[int]:
        author_id = pulled_authors.c.author_id
        query = select(author_id).where(author_id > after).order_by(author_id).limit(limit)
        async with self._db.read() as connection:
            return list(await connection.scalars(query))

    async def blocks_page(self, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        return await self._pairs_page(blocks.c.user_id, blocks.c.target_id, after, limit)

    async def follows_page(self, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        return await self._pairs_page(follows.c.follower_id, follows.c.author_id, after, limit)

    async def _pairs_page(
        self, one: ColumnElement[int], other: ColumnElement[int], after: tuple[int, int], limit: int
    ) -> list[tuple[int, int]]:
        query = (
            select(one, other).where(beyond(one, other, after)).order_by(one, other).limit(limit)
        )
        async with self._db.read() as connection:
            return [(first, second) for first, second in await connection.execute(query)]


async def _blocked(connection: AsyncConnection, user_id: int, other_id: int) -> bool:
    # TiDB locks a row that is looked up by its whole key, also one that is not there, but nothing
    # of what a range lacks: one look-up each, so that a block at the same moment is seen.
    for block in (_block(user_id, other_id), _block(other_id, user_id)):
        found = await connection.execute(select(blocks).where(block).with_for_update())
        if found.first() is not None:
            return True
    return False


async def _take_turn(connection: AsyncConnection, user_id: int) -> None:
    """One who follows several authors at once does it one after another, or could pass the limit.

    TiDB locks the key that is looked up, here one that nobody has: following oneself.
    """
    await connection.execute(select(follows).where(_edge(user_id, user_id)).with_for_update())


def _count_following(user_id: int) -> Select[int]:
    return select(func.count()).select_from(follows).where(follows.c.follower_id == user_id)


def _edge(follower_id: int, author_id: int) -> ColumnElement[bool]:
    return and_(follows.c.follower_id == follower_id, follows.c.author_id == author_id)


def _block(user_id: int, target_id: int) -> ColumnElement[bool]:
    return and_(blocks.c.user_id == user_id, blocks.c.target_id == target_id)
