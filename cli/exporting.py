"""Writes everything in the import format: users, follows, posts, likes, impressions.

Pages go straight to the file, so that memory stays small. What changes meanwhile may or may not be
in it. Passwords and blocks are not exported, nor impressions older than the stores keep them.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.progress import Progress

from cli.format import (
    FollowLine,
    ImpressionLine,
    LikeLine,
    Line,
    MediaItem,
    PostLine,
    UserLine,
    dump_all,
)
from mesh.errors import NotFound
from stores.connect import Connections
from stores.posts.port import StoredPost

_PAGE = 1_000


async def export(stores: Connections, out: Path, progress: Progress) -> Counter[str]:
    """Writes `out`, and the posts' media into the folder `<out>.media` beside it.

    The file appears under its name when it is complete. Returns how many lines of each kind it
    has. Raises FeedError when a store fails, and OSError.
    """
    tally: Counter[str] = Counter()
    media = out.with_name(f"{out.name}.media")
    partial = out.with_name(f"{out.name}.part")
    pages = (
        ("user", _users(stores)),
        ("follow", _follows(stores)),
        ("post", _posts(stores, media)),
        ("like", _likes(stores)),
        ("impression", _impressions(stores)),
    )
    with partial.open("wb") as file:
        for kind, lines in pages:
            bar = progress.add_task(f"{kind}s", total=None)
            async for page in lines:
                await asyncio.to_thread(file.write, dump_all(page))
                tally[kind] += len(page)
                progress.update(bar, completed=tally[kind])
            progress.update(bar, total=tally[kind])
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    partial.replace(out)
    return tally


async def _users(stores: Connections) -> AsyncIterator[Sequence[Line]]:
    after = 0
    while page := await stores.users().page(after, _PAGE):
        yield [
            UserLine(
                id=str(user.user_id),
                username=user.username,
                display_name=user.display_name,
                created_at=user.created_at,
            )
            for user in page
        ]
        after = page[-1].user_id


async def _follows(stores: Connections) -> AsyncIterator[Sequence[Line]]:
    after = (0, 0)
    while page := await stores.graph().follows_page(after, _PAGE):
        yield [FollowLine(follower=str(follower), author=str(author)) for follower, author in page]
        after = page[-1]


async def _posts(stores: Connections, media: Path) -> AsyncIterator[Sequence[Line]]:
    after = 0
    while page := await stores.posts().page(after, _PAGE):
        embeddings = await stores.vectors().retrieve([post.post_id for post in page])
        yield [
            PostLine(
                id=str(post.post_id),
                author=str(post.author_id),
                text=post.text,
                tags=post.tags,
                created_at=post.created_at,
                media=await _save_media(stores, post, media),
                embedding=embeddings.get(post.post_id),
            )
            for post in page
        ]
        after = page[-1].post_id


async def _save_media(stores: Connections, post: StoredPost, folder: Path) -> tuple[MediaItem, ...]:
    """Copies the post's media; what the media store has lost is left out."""
    saved = []
    for place, each in enumerate(post.media):
        name = f"{post.post_id}-{place}{Path(each.key).suffix}"
        try:
            data, _ = await stores.media().get(each.key)
        except NotFound:
            continue
        await asyncio.to_thread(_write, folder / name, data)
        saved.append(MediaItem(file=f"{folder.name}/{name}"))
    return tuple(saved)


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)


async def _likes(stores: Connections) -> AsyncIterator[Sequence[Line]]:
    after = (0, 0)
    while page := await stores.posts().likes_page(after, _PAGE):
        yield [LikeLine(user=str(user), post=str(post), at=at) for user, post, at in page]
        after = page[-1][:2]


async def _impressions(stores: Connections) -> AsyncIterator[Sequence[Line]]:
    after = (0, "")
    while page := await stores.impressions().page(after, _PAGE):
        exist = await stores.posts().authors(list({each.post_id for each in page}))
        yield [
            ImpressionLine(
                user=str(each.user_id),
                post=str(each.post_id),
                at=datetime.fromtimestamp(each.seen_at_ms / 1000, UTC),
                dwell_ms=each.dwell_ms,
                position=each.position,
                id=each.event_id,
            )
            for each in page
            # A deleted post's impressions are kept, but nothing could be made of them.
            if each.post_id in exist
        ]
        after = (page[-1].seen_at_ms, page[-1].event_id)
