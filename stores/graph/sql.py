"""The social graph in SQL."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, delete, func, literal, or_, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import PermissionDenied, ResourceExhausted
from stores.events.port import Event
from stores.graph.port import Neighborhood, Relation
from stores.outbox.sql import append
from stores.sql.database import Database, chunks, insert_ignore, insert_many
from stores.sql.tables import blocks, follows, pulled_authors


class SqlGraphStore:
    """`stores.graph.port.GraphStore` in SQL; events go to the outbox of the same transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def follow(self, user_id: int, author_id: int, max_following: int, event: Event) -> bool:
        edge = {"follower_id": user_id, "author_id": author_id}
        async with self._db.write() as connection:
            added = await connection.execute(insert_ignore(follows), edge)
            if added.rowcount == 0:
                return False
            if await _blocked(connection, user_id, author_id):
                raise PermissionDenied("One of the two blocks the other.")
            if await _following(connection, user_id) > max_following:
                raise ResourceExhausted(f"Nobody may follow more than {max_following} authors.")
            await append(connection, event)
            return True

    async def unfollow(self, user_id: int, author_id: int, event: Event) -> bool:
        async with self._db.write() as connection:
            removed = await connection.execute(delete(follows).where(_edge(user_id, author_id)))
            if removed.rowcount == 0:
                return False
            await append(connection, event)
            return True

    async def block(self, user_id: int, target_id: int, event: Event) -> bool:
        block = {"user_id": user_id, "target_id": target_id}
        edges = or_(_edge(user_id, target_id), _edge(target_id, user_id))
        async with self._db.write() as connection:
            added = await connection.execute(insert_ignore(blocks), block)
            if added.rowcount == 0:
                return False
            await connection.execute(delete(follows).where(edges))
            await append(connection, event)
            return True

    async def unblock(self, user_id: int, target_id: int, event: Event) -> bool:
        async with self._db.write() as connection:
            removed = await connection.execute(delete(blocks).where(_block(user_id, target_id)))
            if removed.rowcount == 0:
                return False
            await append(connection, event)
            return True

    async def follow_many(self, edges: Sequence[tuple[int, int]]) -> None:
        for chunk in chunks(edges):
            rows = [
                {"follower_id": user_id, "author_id": author_id} for user_id, author_id in chunk
            ]
            async with self._db.write() as connection:
                await insert_many(connection, follows, rows)

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
            return await _following(connection, user_id)

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
        async with self._db.write() as connection:
            await connection.execute(insert_ignore(pulled_authors), {"author_id": author_id})

    async def is_pulled(self, author_id: int) -> bool:
        query = select(pulled_authors).where(pulled_authors.c.author_id == author_id)
        async with self._db.read() as connection:
            return (await connection.execute(query)).one_or_none() is not None

    async def follows_page(self, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        key = tuple_(follows.c.follower_id, follows.c.author_id)
        query = (
            select(follows.c.follower_id, follows.c.author_id)
            .where(key > tuple_(literal(after[0]), literal(after[1])))
            .order_by(follows.c.follower_id, follows.c.author_id)
            .limit(limit)
        )
        async with self._db.read() as connection:
            rows = await connection.execute(query)
            return [(follower_id, author_id) for follower_id, author_id in rows]


async def _blocked(connection: AsyncConnection, user_id: int, other_id: int) -> bool:
    either = or_(_block(user_id, other_id), _block(other_id, user_id))
    # Locked where the database has row locks, so that a block at the same moment is seen.
    found = await connection.execute(select(blocks).where(either).with_for_update())
    return found.first() is not None


async def _following(connection: AsyncConnection, user_id: int) -> int:
    query = select(func.count()).where(follows.c.follower_id == user_id)
    return await connection.scalar(query) or 0


def _edge(follower_id: int, author_id: int) -> ColumnElement[bool]:
    return and_(follows.c.follower_id == follower_id, follows.c.author_id == author_id)


def _block(user_id: int, target_id: int) -> ColumnElement[bool]:
    return and_(blocks.c.user_id == user_id, blocks.c.target_id == target_id)
