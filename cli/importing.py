"""Loads lines of the import format into every store, in batches, resumably.

A batch is judged whole, then written to the stores, then recorded in the index. All bulk writes
may be repeated, so that a batch which was cut off is simply loaded again.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from argon2 import PasswordHasher
from rich.progress import Progress

from cli.concurrency import for_each
from cli.format import PostLine, parse
from cli.index import FileState, Index, Touched
from cli.resolving import BadLine, Batch, MediaFile, NewPost, NewUser, NumberedLine, resolve
from cli.settling import settle
from cli.sources import RawLine, Source, read_batch
from mesh.errors import AlreadyExists, InvalidArgument
from mesh.ids import now_ms
from mesh.packing import Vector
from mesh.settings import Settings
from stores.connect import Connections
from stores.media.images import prepare
from stores.users.port import Credentials
from stores.vectors.port import PostVector
from workers.embedding import text_of
from workers.features import LONG_DWELL_MS

LOADED, KNOWN, SKIPPED = "loaded", "known", "skipped"
# OWASP's least recommendation, as the gateway hashes; the parameters travel with each hash.
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
_EMBED_AT_ONCE = 128


class StrictStop(Exception):
    """A bad line was met under --strict; its batch was not loaded."""

    def __init__(self, bad: BadLine) -> None:
        super().__init__(bad.reason)
        self.bad = bad


class Importer:
    """Imports sources, one after the other.

    Args:
        stores: Where everything goes.
        settings: FEED_DATA_DIR says where the index is; the rest is as the workers read it.
        progress: Gets a bar a source, in bytes, and those of what is settled at the end.
        report: Is told every bad line, with its source's name.
        strict: Whether the first bad line ends the import.
    """

    def __init__(
        self,
        stores: Connections,
        settings: Settings,
        progress: Progress,
        report: Callable[[str, BadLine], None],
        *,
        strict: bool = False,
    ) -> None:
        self._stores = stores
        self._settings = settings
        self._progress = progress
        self._report = report
        self._strict = strict

    async def run(self, sources: Sequence[Source]) -> Counter[str]:
        """Returns how many lines met which end, by "kind outcome"; outcomes are LOADED and so on.

        A source that came to its end without a bad line is passed over the next time. One with
        bad lines is read again, because what they wanted may be there then.

        Raises:
            StrictStop: See `strict`.
            FeedError: A store failed; the same call later goes on from there.
            OSError: A source cannot be read, or another import is running.
        """
        tally: Counter[str] = Counter()
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        with Index(self._settings.data_dir / "imports.db") as index:
            for source in sources:
                tally += await self._load_source(index, source)
            await settle(index, self._stores, self._settings, self._progress)
        return tally

    async def _load_source(self, index: Index, source: Source) -> Counter[str]:
        state = await asyncio.to_thread(index.begin, source.digest, now_ms())
        if state.offset == source.size > 0:
            self._progress.console.print(f"{source.name}: imported before; nothing to do")
        bar = self._progress.add_task(source.name, total=source.size, completed=state.offset)
        with source.open() as file:
            file.seek(state.offset)
            while raw := await asyncio.to_thread(read_batch, file, state.line):
                try:
                    batch = await self._load_batch(index, source, state, raw)
                except StrictStop as stop:
                    self._report(source.name, stop.bad)
                    raise
                for bad in batch.bad:
                    self._report(source.name, bad)
                state.tally += _count(batch)
                state.line, state.offset = raw[-1].number, file.tell()
                await asyncio.to_thread(
                    index.commit, state, batch.user_ids, batch.post_ids, _touched(batch)
                )
                self._progress.update(bar, completed=state.offset)
        if any(outcome.endswith(SKIPPED) for outcome in state.tally):
            index.forget(source.digest)
        return state.tally

    async def _load_batch(
        self, index: Index, source: Source, state: FileState, raw: Sequence[RawLine]
    ) -> Batch:
        """Returns what was written; its `bad` holds every line that was not."""
        lines, unreadable = await asyncio.to_thread(_parse_all, raw)
        with TemporaryDirectory(prefix="feedmesh-import-") as folder:
            media = await _prepare_all(source, lines, Path(folder))
            batch = await self._resolve_and_write_users(index, state, lines, unreadable, media)
            await self._write_posts(batch.posts)
        await self._write_rest(batch)
        return batch

    async def _resolve_and_write_users(
        self,
        index: Index,
        state: FileState,
        lines: Sequence[NumberedLine],
        unreadable: Sequence[BadLine],
        media: dict[str, MediaFile | str],
    ) -> Batch:
        """Users come first, because only the store knows whose name is taken already."""
        hashes: dict[int, str] = {}
        refused: dict[int, str] = {}
        while True:
            batch = await asyncio.to_thread(
                resolve,
                lines,
                index,
                media=media,
                refused=refused,
                started_at_ms=state.started_at_ms,
                now_ms=now_ms(),
            )
            batch.bad = sorted([*unreadable, *batch.bad], key=lambda bad: bad.number)
            if batch.bad and self._strict:
                raise StrictStop(batch.bad[0])
            try:
                await self._write_users(batch.users, hashes)
                return batch
            except AlreadyExists:
                taken = await self._taken(batch.users)
                if not taken:
                    raise
                refused |= taken

    async def _write_users(self, users: Sequence[NewUser], hashes: dict[int, str]) -> None:
        """`hashes` keeps the passwords' hashes by line, should this be called again."""

        async def hash_one(new: NewUser) -> None:
            if new.password is not None and new.number not in hashes:
                hashes[new.number] = await asyncio.to_thread(_hasher.hash, new.password)

        await for_each(users, hash_one)
        if users:
            await self._stores.users().create_many(
                [Credentials(new.user, hashes.get(new.number)) for new in users]
            )

    async def _taken(self, users: Sequence[NewUser]) -> dict[int, str]:
        """Reasons, by line, against users whose name belongs to somebody else."""
        store, taken = self._stores.users(), {}
        for new in users:
            found = await store.credentials(new.user.username)
            if found is not None and found.user.user_id != new.user.user_id:
                taken[new.number] = f"username: {new.user.username!r} is taken"
        return taken

    async def _write_posts(self, posts: Sequence[NewPost]) -> None:
        if not posts:
            return
        await self._put_media(posts)
        await self._stores.posts().create_many([new.post for new in posts])
        embeddings = await self._embeddings(posts)
        vectors = [
            PostVector(
                new.post.post_id,
                new.post.author_id,
                int(new.post.created_at.timestamp() * 1000),
                new.post.tags,
                embedding,
            )
            for new in posts
            if (embedding := embeddings.get(new.post.post_id)) is not None
        ]
        await asyncio.gather(
            self._stores.vectors().upsert(vectors), self._put_features(posts, embeddings)
        )

    async def _put_media(self, posts: Sequence[NewPost]) -> None:
        store = self._stores.media()

        async def put(new: NewPost) -> None:
            for file, media in zip(new.files, new.post.media, strict=True):
                data = await asyncio.to_thread(file.read_bytes)
                await store.put(media.key, data, media.content_type)

        await for_each(posts, put)

    async def _embeddings(self, posts: Sequence[NewPost]) -> dict[int, Vector]:
        """Given or made; a post of media alone, without any word, has none."""
        found = {new.post.post_id: new.embedding for new in posts if new.embedding is not None}
        missing = [new.post for new in posts if new.post.post_id not in found and text_of(new.post)]
        for start in range(0, len(missing), _EMBED_AT_ONCE):
            part = missing[start : start + _EMBED_AT_ONCE]
            made = await self._stores.embedder().embed([text_of(post) for post in part])
            found |= {
                post.post_id: np.asarray(vector, np.float32)
                for post, vector in zip(part, made, strict=True)
            }
        return found

    async def _put_features(self, posts: Sequence[NewPost], embeddings: dict[int, Vector]) -> None:
        features = self._stores.feature_cache()

        async def put(new: NewPost) -> None:
            await features.put_post(
                new.post.post_id,
                author_id=new.post.author_id,
                has_media=bool(new.post.media),
                embedding=embeddings.get(new.post.post_id),
                topic=new.post.topic,
            )

        await for_each(posts, put)
        await features.put_unproven([new.post.post_id for new in posts])

    async def _write_rest(self, batch: Batch) -> None:
        if batch.follows:
            await self._stores.graph().follow_many(batch.follows)
        if batch.likes:
            await self._stores.posts().like_many(batch.likes)
        if batch.impressions:
            await self._stores.impressions().record(batch.impressions)
            await self._stores.feature_cache().add_viewers(
                [(each.post_id, each.user_id) for each in batch.impressions]
            )


def _parse_all(raw: Sequence[RawLine]) -> tuple[list[NumberedLine], list[BadLine]]:
    good: list[NumberedLine] = []
    bad: list[BadLine] = []
    for line in raw:
        if line.content is None:
            bad.append(BadLine(line.number, "line", "is longer than 1 MiB"))
        elif line.content.strip():
            try:
                good.append(NumberedLine(line.number, parse(line.content)))
            except ValueError as error:
                bad.append(BadLine(line.number, "line", str(error)))
    return good, bad


async def _prepare_all(
    source: Source, lines: Sequence[NumberedLine], folder: Path
) -> dict[str, MediaFile | str]:
    """Each media file that a post names, prepared in the folder, or why it cannot be used."""
    found: dict[str, MediaFile | str] = {}

    async def prepare_one(name: str) -> None:
        found[name] = await asyncio.to_thread(_prepare, source, name, folder)

    posts = [each.line for each in lines if isinstance(each.line, PostLine)]
    await for_each({item.file for post in posts for item in post.media}, prepare_one)
    return found


def _prepare(source: Source, name: str, folder: Path) -> MediaFile | str:
    try:
        data = source.read_media(name)
        ready = prepare(data, name)
    except InvalidArgument as error:
        return error.fields["media"]
    except ValueError as error:
        return str(error)
    except OSError as error:
        return error.strerror or "cannot be read"
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    # On disk, because those of a whole batch may be too much for memory.
    path = folder / digest
    path.write_bytes(ready.data)
    return MediaFile(path, digest, ready.content_type, ready.suffix, ready.width, ready.height)


def _touched(batch: Batch) -> set[tuple[Touched, int]]:
    """Whose features and mailboxes this batch made stale."""
    posts = {new.post.post_id: new.post.author_id for new in batch.posts} | batch.liked
    posts |= {each.post_id: each.author_id for each in batch.impressions}
    authors = {*posts.values(), *(author for _, author in batch.follows)}
    readers = {user for user, _, _ in batch.likes}
    readers |= {each.user_id for each in batch.impressions if (each.dwell_ms or 0) >= LONG_DWELL_MS}
    touched: set[tuple[Touched, int]] = {("post", post) for post in posts}
    touched |= {("author", author) for author in authors}
    return touched | {("reader", reader) for reader in readers}


def _count(batch: Batch) -> Counter[str]:
    loaded = {
        "user": len(batch.users),
        "follow": len(batch.follows),
        "post": len(batch.posts),
        "like": len(batch.likes),
        "impression": len(batch.impressions),
    }
    tally = Counter({f"{kind} {LOADED}": count for kind, count in loaded.items()})
    tally.update({f"{kind} {KNOWN}": count for kind, count in batch.known.items()})
    tally.update(f"{bad.kind} {SKIPPED}" for bad in batch.bad)
    return +tally
