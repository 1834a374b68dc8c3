"""Puts the demo world into the stores, by the same path as any import."""

import asyncio
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
from cli.importing import Importer
from cli.resolving import BadLine
from cli.sources import Source, from_memory
from local.demo.images import draw
from local.demo.world import World, build
from mesh.settings import Settings
from stores.connect import Connections

SEED = 20


async def load(stores: Connections, settings: Settings, progress: Progress) -> None:
    """Loads the demo world unless it is there; goes on where an earlier call was cut off.

    Args:
        stores: Where it goes.
        settings: FEED_DATA_DIR holds `demo.loaded` once it is there.
        progress: Gets the bars.

    Raises:
        FeedError: A store failed.
        OSError: Another import is running.
    """
    loaded = settings.data_dir / "demo.loaded"
    if loaded.exists():
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    now = _begun(settings.data_dir / "demo.begun")
    source = await asyncio.to_thread(_source, build(SEED, now), progress)

    def report(name: str, bad: BadLine) -> None:
        progress.console.print(f"{name}:{bad.number}: {bad.reason}", markup=False)

    await Importer(stores, settings, progress, report).run([source])
    loaded.write_text(f"{now.isoformat()}\n")


def lines_of(world: World) -> list[Line]:
    """The world in the import format, in an order in which it can be loaded."""
    return [
        *(
            UserLine(
                id=user.id,
                username=user.username,
                display_name=user.display_name,
                created_at=user.created_at,
                password=user.password,
            )
            for user in world.users
        ),
        *(FollowLine(follower=follower, author=author) for follower, author in world.follows),
        *(
            PostLine(
                id=post.id,
                author=post.author,
                text=post.text,
                tags=post.tags,
                created_at=post.created_at,
                media=() if post.image is None else (MediaItem(file=f"{post.id}.jpg"),),
            )
            for post in world.posts
        ),
        *(LikeLine(user=user, post=post, at=at) for user, post, at in world.likes),
        *(
            ImpressionLine(
                user=shown.user,
                post=shown.post,
                at=shown.at,
                dwell_ms=shown.dwell_ms,
                position=shown.position,
            )
            for shown in world.impressions
        ),
    ]


def _begun(path: Path) -> datetime:
    """The moment the world is seen from: now, or when an earlier call began."""
    if not path.exists():
        path.write_text(datetime.now(UTC).isoformat())
    return datetime.fromisoformat(path.read_text())


def _source(world: World, progress: Progress) -> Source:
    pictured = [post for post in world.posts if post.image is not None]
    bar = progress.add_task("drawing", total=len(pictured))
    images = {}
    for post in pictured:
        images[f"{post.id}.jpg"] = draw(post.topic, post.image or 0)
        progress.advance(bar)
    return from_memory("demo world", dump_all(lines_of(world)), images)
