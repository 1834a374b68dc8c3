"""Moves an installation: everything that is nobody's derivative, from one set of stores to another.

Page by page through the ports, so that any adapter can be on either side. Every bulk write may be
repeated; where each kind has come to is kept, so that the same command goes on. Then both sides are
read and compared. Mailboxes, features and popular posts are computed anew on the other side.

Both sides should be at rest: what changes meanwhile may be missing, which the comparison shows.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from cli.concurrency import for_each
from cli.index import Touched
from cli.settling import settle
from mesh.errors import FailedPrecondition, NotFound
from mesh.settings import Settings
from stores.connect import Connections
from stores.posts.port import StoredPost
from stores.vectors.port import PostVector

_PAGE = 1_000
# Two engines' vectors of one embedding may differ in the last bits, as each makes them unit long.
_SAME_WITHIN = 1e-5

# A place in an order: what the next page comes after.
Place = Any


@dataclass(frozen=True, slots=True)
class Sum:
    """How many rows there are, and a sum of their hashes, whatever their order."""

    count: int = 0
    checksum: int = 0

    def plus(self, row: object) -> "Sum":
        """With one row more."""
        digest = hashlib.blake2b(repr(row).encode(), digest_size=16).digest()
        return Sum(self.count + 1, (self.checksum + int.from_bytes(digest)) % 2**128)


@dataclass(frozen=True, slots=True)
class Compared:
    """One kind on both sides."""

    kind: str
    here: Sum
    there: Sum

    @property
    def is_same(self) -> bool:
        return self.here == self.there


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of rows.

    Attributes:
        start: The place before the first.
        page: Rows after a place, in order; empty at the end.
        place: A row's.
        write: Adds rows; may be repeated.
    """

    name: str
    start: Place
    page: Callable[[Connections, Place], Awaitable[Sequence[Any]]]
    place: Callable[[Any], Place]
    write: Callable[[Connections, Connections, Sequence[Any]], Awaitable[None]]


async def copy(
    source: Connections, target: Connections, settings: Settings, state: Path, progress: Progress
) -> list[Compared]:
    """Copies everything, and compares.

    Args:
        source: Read only.
        target: Written to.
        settings: The target's.
        state: A file of this copy's own, which says how far it has come; removed at the end.
        progress: Gets a bar a kind.

    Raises:
        FailedPrecondition: The source has events that wait to be published.
        FeedError: A store failed; the same call later goes on from there.
    """
    if await source.outbox().pending(1):
        raise FailedPrecondition("The source has events that wait; let its workers finish first.")
    places = await asyncio.to_thread(_load, state)
    for kind in _KINDS:
        bar = progress.add_task(kind.name, total=None)
        place = _thawed(places.get(kind.name, kind.start))
        while rows := await kind.page(source, place):
            await kind.write(source, target, rows)
            place = places[kind.name] = kind.place(rows[-1])
            await asyncio.to_thread(_save, state, places)
            progress.advance(bar, len(rows))
    await settle(await _everything(target), target, settings, progress)
    compared = await compare(source, target, progress)
    await asyncio.to_thread(state.unlink, missing_ok=True)
    return compared


async def compare(source: Connections, target: Connections, progress: Progress) -> list[Compared]:
    """Counts and checksums of each kind on both sides."""
    compared = []
    for kind in _KINDS:
        bar = progress.add_task(f"compare {kind.name}", total=2)
        sums = []
        for stores in (source, target):
            sums.append(await _sum(kind, stores))
            progress.advance(bar)
        compared.append(Compared(kind.name, *sums))
    return [*compared, *await _compare_contents(source, target, progress)]


async def _sum(kind: _Kind, stores: Connections) -> Sum:
    total = Sum()
    async for rows in _pages(kind, stores):
        for row in rows:
            total = total.plus(row)
    return total


async def _compare_contents(
    source: Connections, target: Connections, progress: Progress
) -> list[Compared]:
    """Media and vectors of the source's posts; what the source itself has lost is in neither."""
    bar = progress.add_task("compare media and vectors", total=None)
    media, vectors = [Sum(), Sum()], [Sum(), Sum()]
    async for rows in _pages(_POSTS, source):
        post_ids = [post.post_id for post in rows]
        here = await source.vectors().retrieve(post_ids)
        there = await target.vectors().retrieve(post_ids)
        for post_id in here.keys() | there.keys():
            mine, its = here.get(post_id), there.get(post_id)
            if mine is not None:
                vectors[0] = vectors[0].plus(post_id)
            if its is not None:
                is_same = mine is not None and np.allclose(mine, its, rtol=0, atol=_SAME_WITHIN)
                vectors[1] = vectors[1].plus(post_id if is_same else (post_id, its.tobytes()))
        for key in sorted({each.key for post in rows for each in post.media}):
            for side, stores in enumerate((source, target)):
                try:
                    data, content_type = await stores.media().get(key)
                except NotFound:
                    continue
                digest = await asyncio.to_thread(lambda d: hashlib.sha256(d).hexdigest(), data)
                media[side] = media[side].plus((key, content_type, digest))
        progress.advance(bar, len(rows))
    return [Compared("media", *media), Compared("vectors", *vectors)]


async def _pages(kind: _Kind, stores: Connections) -> AsyncIterator[Sequence[Any]]:
    place = kind.start
    while rows := await kind.page(stores, place):
        yield rows
        place = kind.place(rows[-1])


async def _write_posts(source: Connections, target: Connections, rows: Sequence[Any]) -> None:
    """Media first, so that no post is without; vectors and features last."""
    posts: Sequence[StoredPost] = rows

    async def copy_media(post: StoredPost) -> None:
        for each in post.media:
            try:
                data, content_type = await source.media().get(each.key)
            except NotFound:
                continue
            await target.media().put(each.key, data, content_type)

    await for_each(posts, copy_media)
    await target.posts().create_many(posts)
    embeddings = await source.vectors().retrieve([post.post_id for post in posts])
    await target.vectors().upsert(
        [
            PostVector(
                post.post_id,
                post.author_id,
                int(post.created_at.timestamp() * 1000),
                post.tags,
                embeddings[post.post_id],
            )
            for post in posts
            if post.post_id in embeddings
        ]
    )
    features = target.feature_cache()

    async def put_features(post: StoredPost) -> None:
        await features.put_post(
            post.post_id,
            author_id=post.author_id,
            has_media=bool(post.media),
            embedding=embeddings.get(post.post_id),
            topic=post.topic,
        )

    await for_each(posts, put_features)
    await features.put_unproven([post.post_id for post in posts])


async def _write_impressions(_: Connections, target: Connections, rows: Sequence[Any]) -> None:
    await target.impressions().record(rows)
    await target.feature_cache().add_viewers([(each.post_id, each.user_id) for each in rows])


async def _write_pulled(_: Connections, target: Connections, rows: Sequence[Any]) -> None:
    await for_each(rows, target.graph().mark_pulled)


_POSTS = _Kind(
    "posts",
    0,
    lambda stores, place: stores.posts().page(place, _PAGE),
    lambda post: post.post_id,
    _write_posts,
)
_USERS = _Kind(
    "users",
    0,
    lambda stores, place: stores.users().credentials_page(place, _PAGE),
    lambda row: row.user.user_id,
    lambda _, target, rows: target.users().create_many(rows),
)
# Posts come before their likes, which are counted; users before all.
_KINDS = (
    _USERS,
    _Kind(
        "follows",
        (0, 0),
        lambda stores, place: stores.graph().follows_page(place, _PAGE),
        lambda row: row,
        lambda _, target, rows: target.graph().follow_many(rows),
    ),
    _Kind(
        "blocks",
        (0, 0),
        lambda stores, place: stores.graph().blocks_page(place, _PAGE),
        lambda row: row,
        lambda _, target, rows: target.graph().block_many(rows),
    ),
    _Kind(
        "pulled authors",
        0,
        lambda stores, place: stores.graph().pulled_page(place, _PAGE),
        lambda row: row,
        _write_pulled,
    ),
    _POSTS,
    _Kind(
        "likes",
        (0, 0),
        lambda stores, place: stores.posts().likes_page(place, _PAGE),
        lambda row: row[:2],
        lambda _, target, rows: target.posts().like_many(rows),
    ),
    _Kind(
        "impressions",
        (0, ""),
        lambda stores, place: stores.impressions().page(place, _PAGE),
        lambda row: (row.seen_at_ms, row.event_id),
        _write_impressions,
    ),
)


@dataclass(slots=True)
class _Everything:
    """All that `settle` could settle."""

    ids: dict[Touched, list[int]]

    def touched(self, kind: Touched) -> list[int]:
        return self.ids[kind]

    def settled(self, kind: Touched, ids: Iterable[int]) -> None:
        """Forgets nothing: a copy that is cut off here begins settling anew."""


async def _everything(stores: Connections) -> _Everything:
    posts: list[int] = []
    authors: set[int] = set()
    async for rows in _pages(_POSTS, stores):
        posts += [post.post_id for post in rows]
        authors |= {post.author_id for post in rows}
    readers = [row.user.user_id async for rows in _pages(_USERS, stores) for row in rows]
    return _Everything({"post": posts, "author": sorted(authors | set(readers)), "reader": readers})


def _load(state: Path) -> dict[str, Place]:
    places: dict[str, Place] = json.loads(state.read_text()) if state.exists() else {}
    return places


def _save(state: Path, places: dict[str, Place]) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    partial = state.with_suffix(".part")
    partial.write_text(json.dumps(places))
    partial.replace(state)


def _thawed(place: Place) -> Place:
    """JSON has no tuples."""
    return tuple(place) if isinstance(place, list) else place
