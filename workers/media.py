"""The media worker: deletes objects that no post shows, and uploads that no post took."""

import asyncio
import logging
from collections.abc import Sequence
from uuid import uuid4

from opentelemetry.instrumentation.utils import suppress_instrumentation as untraced

from mesh import telemetry
from mesh.errors import FeedError
from stores.leases.port import Leases
from stores.media.images import post_of
from stores.media.port import MediaStore, UploadStore
from stores.posts.port import PostStore
from workers.consumer import stop_if_cancelled

_log = logging.getLogger(__name__)

LEASE = "media"
# A post on its way has stored its media and is not there yet. It takes seconds, not a day.
OLD_S = 86_400.0
_EVERY_S = 3600.0
_AT_ONCE = 500
# From so many on, objects without a post look like a database that is not theirs.
_SUSPICIOUS = 100


class MediaCleaner:
    """Looks once an hour for what crashed requests, failed deletions and clients leave behind.

    Args:
        media: Where the objects are.
        uploads: Where uploads are; None where there are none.
        posts: Which objects are shown.
        leases: So that one of several workers does it.
    """

    def __init__(
        self, media: MediaStore, uploads: UploadStore | None, posts: PostStore, leases: Leases
    ) -> None:
        self._media = media
        self._uploads = uploads
        self._posts = posts
        self._leases = leases
        self._holder = uuid4().hex

    async def run(self) -> None:
        """Cleans up every hour, until cancelled."""
        while True:
            stop_if_cancelled()
            try:
                # Not released: it is what keeps the others from doing it all again this hour.
                with untraced():
                    is_mine = await self._leases.acquire(LEASE, self._holder, _EVERY_S * 0.9)
                if is_mine:
                    await self.clean()
            except FeedError as error:
                _log.warning("could not clean up media: %s", error)
            await asyncio.sleep(_EVERY_S)

    async def clean(self, older_than_s: float = OLD_S) -> int:
        """Deletes what is that old and no post's; returns how many objects that were.

        When most objects have no post, they stay: a database that was emptied or exchanged must
        not take all media with it.
        """
        with telemetry.span("clean up media"):
            orphans, looked_at = await self._orphans(older_than_s)
            if len(orphans) >= _SUSPICIOUS and len(orphans) * 2 > looked_at:
                _log.error(
                    "%d of %d media objects belong to no post of this database; nothing is deleted",
                    len(orphans),
                    looked_at,
                )
                orphans = []
            for start in range(0, len(orphans), _AT_ONCE):
                await self._media.delete(orphans[start : start + _AT_ONCE])
            forgotten = await self._forget_uploads(older_than_s)
            telemetry.annotate({"feed.media.deleted": len(orphans) + forgotten})
            _log.info("deleted %d media objects and %d uploads", len(orphans), forgotten)
            return len(orphans) + forgotten

    async def _orphans(self, older_than_s: float) -> tuple[list[str], int]:
        orphans: list[str] = []
        looked_at, waiting = 0, list[str]()
        keys = self._media.keys(older_than_s)
        async for key in keys:
            looked_at += 1
            waiting.append(key)
            if len(waiting) == _AT_ONCE:
                orphans += await self._without_post(waiting)
                waiting = []
        return orphans + await self._without_post(waiting), looked_at

    async def _without_post(self, keys: Sequence[str]) -> list[str]:
        """Those that their post does not show, or whose post is gone."""
        # Of a key that does not name its post, nobody knows.
        of_post = {key: post_id for key in keys if (post_id := post_of(key)) is not None}
        posts = await self._posts.get(sorted(set(of_post.values())))
        shown = {media.key for post in posts.values() for media in post.media}
        return [key for key in of_post if key not in shown]

    async def _forget_uploads(self, older_than_s: float) -> int:
        if self._uploads is None:
            return 0
        stale = self._uploads.stale(older_than_s)
        keys = [key async for key in stale]
        await self._uploads.discard(keys)
        return len(keys)
