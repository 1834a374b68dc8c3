"""Posts and likes in SQL."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    Row,
    TextClause,
    and_,
    delete,
    func,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from stores.events.port import Event
from stores.outbox.sql import append
from stores.posts.port import Engagement, IdempotencyKey, StoredMedia, StoredPost
from stores.sql.database import Database, beyond, chunks, insert_ignore, insert_many
from stores.sql.tables import idempotency_keys, likes, posts

# Authors in one statement of `newest_ids`; SQLite joins at most 500 SELECTs.
_AUTHORS = 100
_KEYS_AT_ONCE = 5000


class SqlPostStore:
    """`stores.posts.port.PostStore` in SQL.

    `like_count` is counted here and nowhere else: a new post begins at 0, whatever it says.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(
        self, post: StoredPost, event: Event, idempotency: IdempotencyKey | None = None
    ) -> StoredPost:
        """As the port says. A key outlives its post.

        Raises `FailedPrecondition` also when the key's post was deleted since, because a late
        repeat must not publish again what its author took back, and `AlreadyExists` when the id
        is another post's.
        """
        published = replace(post, like_count=0)

        async def publish(connection: AsyncConnection) -> bool:
            if idempotency is not None and not await _claim(connection, published, idempotency):
                return False
            await connection.execute(insert(posts), _row(published))
            await append(connection, event)
            return True

        try:
            is_new = await self._db.write(publish)
        except IntegrityError as error:
            raise AlreadyExists(f"Post {post.post_id} exists.") from error
        if is_new or idempotency is None:
            return published
        earlier = await self.find_idempotent(post.author_id, idempotency)
        if earlier is None:
            raise Unavailable("The key's earlier post cannot be read yet.")
        return earlier

    async def find_idempotent(
        self, author_id: int, idempotency: IdempotencyKey
    ) -> StoredPost | None:
        keys = idempotency_keys
        query = (
            select(keys.c.fingerprint, posts)
            .outerjoin_from(keys, posts, posts.c.post_id == keys.c.post_id)
            .where(keys.c.author_id == author_id, keys.c.idempotency_key == idempotency.key)
        )
        async with self._db.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        if row.fingerprint != idempotency.fingerprint:
            raise FailedPrecondition("This idempotency key was used for another post.")
        if row.post_id is None:
            raise FailedPrecondition("The post of this idempotency key has been deleted.")
        return _post(row)

    async def forget_idempotency_keys(self, before: datetime) -> int:
        """As the port says; TiDB forgets by itself, after a day (see `stores.sql.migrations`)."""
        if not self._db.is_sqlite:
            return 0
        forgotten = 0
        while removed := await self._db.write(partial(_forget_keys, before=before)):
            forgotten += removed
        return forgotten

    async def create_many(self, posts: Sequence[StoredPost]) -> None:
        for chunk in chunks(posts):
            await self._db.write(partial(_add, chunk=chunk))

    async def delete(self, post_id: int, author_id: int, event: Event) -> StoredPost:
        query = select(posts).where(posts.c.post_id == post_id).with_for_update()

        async def remove(connection: AsyncConnection) -> StoredPost:
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                raise _missing(post_id)
            if row.author_id != author_id:
                raise PermissionDenied("Only its author may delete a post.")
            await connection.execute(delete(posts).where(posts.c.post_id == post_id))
            await connection.execute(delete(likes).where(likes.c.post_id == post_id))
            await append(connection, event)
            return _post(row)

        return await self._db.write(remove)

    async def get(self, post_ids: Sequence[int]) -> dict[int, StoredPost]:
        found: dict[int, StoredPost] = {}
        async with self._db.read() as connection:
            for chunk in chunks(post_ids):
                rows = await connection.execute(select(posts).where(posts.c.post_id.in_(chunk)))
                found.update((row.post_id, _post(row)) for row in rows)
        return found

    async def authors(self, post_ids: Sequence[int]) -> dict[int, int]:
        found: dict[int, int] = {}
        query = select(posts.c.post_id, posts.c.author_id)
        async with self._db.read() as connection:
            for chunk in chunks(post_ids):
                rows = await connection.execute(query.where(posts.c.post_id.in_(chunk)))
                found.update((row.post_id, row.author_id) for row in rows)
        return found

    async def by_author(self, author_id: int, before: int | None, limit: int) -> list[StoredPost]:
        query = select(posts).where(posts.c.author_id == author_id)
        if before is not None:
            query = query.where(posts.c.post_id < before)
        query = query.order_by(posts.c.post_id.desc()).limit(limit)
        async with self._db.read() as connection:
            return [_post(row) for row in await connection.execute(query)]

    async def newest_ids(self, author_ids: Sequence[int], per_author: int) -> dict[int, list[int]]:
        newest: dict[int, list[int]] = {author_id: [] for author_id in author_ids}
        for chunk in chunks(list(newest), _AUTHORS):
            values = {f"author_{n}": author_id for n, author_id in enumerate(chunk)}
            # A deadline each: TiDB takes 40 ms for a hundred authors.
            async with self._db.read() as connection:
                rows = await connection.execute(
                    _newest_of(len(chunk)), {**values, "per_author": per_author}
                )
                for author_id, post_id in rows:
                    newest[author_id].append(post_id)
        for post_ids in newest.values():
            # A union promises no order.
            post_ids.sort(reverse=True)
        return newest

    async def page(self, after: int, limit: int) -> list[StoredPost]:
        query = select(posts).where(posts.c.post_id > after).order_by(posts.c.post_id).limit(limit)
        async with self._db.read() as connection:
            return [_post(row) for row in await connection.execute(query)]

    async def like(self, user_id: int, post_id: int, at: datetime, event: Event) -> bool:
        like = {"user_id": user_id, "post_id": post_id, "created_at": at}

        async def add(connection: AsyncConnection) -> bool:
            added = await connection.execute(insert_ignore(likes), like)
            if added.rowcount == 0:
                return False
            if not await _count(connection, post_id, 1):
                raise _missing(post_id)
            await append(connection, event)
            return True

        return await self._db.write(add)

    async def unlike(self, user_id: int, post_id: int, event: Event) -> bool:
        its_like = and_(likes.c.user_id == user_id, likes.c.post_id == post_id)

        async def remove(connection: AsyncConnection) -> bool:
            removed = await connection.execute(delete(likes).where(its_like))
            if not await _count(connection, post_id, -removed.rowcount):
                raise _missing(post_id)
            if removed.rowcount == 0:
                return False
            await append(connection, event)
            return True

        return await self._db.write(remove)

    async def like_many(self, likes: Sequence[tuple[int, int, datetime]]) -> None:
        for chunk in chunks(likes):
            await self._db.write(partial(_add_likes, chunk=chunk))

    async def liked(self, user_id: int, post_ids: Sequence[int]) -> set[int]:
        found: set[int] = set()
        query = select(likes.c.post_id).where(likes.c.user_id == user_id)
        async with self._db.read() as connection:
            for chunk in chunks(post_ids):
                found.update(await connection.scalars(query.where(likes.c.post_id.in_(chunk))))
        return found

    async def recent_likes(self, user_id: int, limit: int) -> list[Engagement]:
        query = (
            select(likes.c.post_id, posts.c.author_id, likes.c.created_at)
            .join_from(likes, posts, posts.c.post_id == likes.c.post_id)
            .where(likes.c.user_id == user_id)
            .order_by(likes.c.created_at.desc(), likes.c.post_id.desc())
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [Engagement(*row) for row in await connection.execute(query)]

    async def likes_page(
        self, after: tuple[int, int], limit: int
    ) -> list[tuple[int, int, datetime]]:
        query = (
            select(likes.c.user_id, likes.c.post_id, likes.c.created_at)
            .where(beyond(likes.c.user_id, likes.c.post_id, after))
            .order_by(likes.c.user_id, likes.c.post_id)
            .limit(limit)
        )
        async with self._db.read() as connection:
            rows = await connection.execute(query)
            return [(user_id, post_id, at) for user_id, post_id, at in rows]


async def _claim(
    connection: AsyncConnection, post: StoredPost, idempotency: IdempotencyKey
) -> bool:
    """Whether the key is this post's; of concurrent writers one wins, and the others see it."""
    key = {
        "author_id": post.author_id,
        "idempotency_key": idempotency.key,
        "fingerprint": idempotency.fingerprint,
        "post_id": post.post_id,
    }
    return (await connection.execute(insert_ignore(idempotency_keys), key)).rowcount == 1


async def _forget_keys(connection: AsyncConnection, before: datetime) -> int:
    """Forgets some, so that nobody's write is held up for long."""
    keys = idempotency_keys
    # The column has no zone, and is UTC.
    is_old = keys.c.created_at < before.astimezone(UTC).replace(tzinfo=None)
    some = select(keys.c.author_id, keys.c.idempotency_key).where(is_old).limit(_KEYS_AT_ONCE)
    removed = await connection.execute(
        delete(keys).where(tuple_(keys.c.author_id, keys.c.idempotency_key).in_(some))
    )
    return removed.rowcount


async def _add(connection: AsyncConnection, chunk: Sequence[StoredPost]) -> None:
    await insert_many(connection, posts, [_row(replace(post, like_count=0)) for post in chunk])


async def _count(connection: AsyncConnection, post_id: int, change: int) -> bool:
    """Changes the post's like count; False when there is no such post."""
    counted = await connection.execute(
        update(posts)
        .where(posts.c.post_id == post_id)
        .values(like_count=posts.c.like_count + change)
    )
    return counted.rowcount == 1


async def _add_likes(
    connection: AsyncConnection, chunk: Sequence[tuple[int, int, datetime]]
) -> None:
    liked = {post_id for _, post_id, _ in chunk}
    # Locked where the database has row locks, so that no post is deleted before its likes come.
    query = select(posts.c.post_id).where(posts.c.post_id.in_(liked)).with_for_update()
    present = set(await connection.scalars(query))
    rows = [
        {"user_id": user_id, "post_id": post_id, "created_at": at}
        for user_id, post_id, at in chunk
        if post_id in present
    ]
    await insert_many(connection, likes, rows)
    # Counted anew, because how many of the rows were new is not known per post.
    count = select(func.count()).where(likes.c.post_id == posts.c.post_id).scalar_subquery()
    await connection.execute(
        update(posts).where(posts.c.post_id.in_(present)).values(like_count=count)
    )


@cache
def _newest_of(authors: int) -> TextClause:
    """A limited walk down the index for each author: prolific ones cost no more than others.

    A window function would read every post of every author. SQLite has no LATERAL.
    """
    return text(
        " UNION ALL ".join(
            f"SELECT * FROM (SELECT author_id, post_id FROM posts WHERE author_id = :author_{n}"  # noqa: S608  n is a number
            f" ORDER BY post_id DESC LIMIT :per_author) AS author_{n}"
            for n in range(authors)
        )
    )


def _missing(post_id: int) -> NotFound:
    return NotFound(f"There is no post {post_id}.")


def _row(post: StoredPost) -> dict[str, Any]:
    return {
        "post_id": post.post_id,
        "author_id": post.author_id,
        "text": post.text,
        "tags": list(post.tags),
        "media": [asdict(media) for media in post.media],
        "like_count": post.like_count,
        "created_at": post.created_at,
    }


def _post(row: Row[Any]) -> StoredPost:
    return StoredPost(
        post_id=row.post_id,
        author_id=row.author_id,
        text=row.text,
        tags=tuple(row.tags),
        media=tuple(StoredMedia(**media) for media in row.media),
        created_at=row.created_at,
        like_count=row.like_count,
    )
