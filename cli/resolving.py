"""From lines of a file to what the stores take: ids given out, references looked up. No IO but
reads of the index, so that a batch is judged whole before anything of it is written.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cli.format import FollowLine, ImpressionLine, LikeLine, Line, MediaItem, PostLine, UserLine
from cli.index import Index, KnownPost
from mesh.ids import EPOCH_MS, MAX_ID, created_ms, first_id_at
from mesh.packing import Vector
from stores.impressions.port import Impression
from stores.media.images import new_key
from stores.posts.port import StoredMedia, StoredPost
from stores.users.port import User

# An exported id is kept when its time and `created_at` agree this well: the two are taken from the
# clock one after the other.
_OWN_WITHIN_MS = 60_000
_FUTURE_MS = 300_000
_LOW_BITS = 22


@dataclass(frozen=True, slots=True)
class NumberedLine:
    """A line that is well formed; `number` counts from 1."""

    number: int
    line: Line


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not loaded, and why. `kind` is "line" when it could not be read at all."""

    number: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class MediaFile:
    """A media file in the form in which it is stored, lying in `path`. Sizes in pixels."""

    path: Path
    digest: str
    content_type: str
    suffix: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user to be added, from line `number`; the password is still in the clear."""

    number: int
    user: User
    password: str | None


@dataclass(frozen=True, slots=True)
class NewPost:
    """A post to be added. `files` hold its media, in the same order."""

    post: StoredPost
    files: tuple[Path, ...]
    embedding: Vector | None


@dataclass(slots=True)
class Batch:
    """What a run of lines asks for. `known` counts, by kind, what was imported before."""

    users: list[NewUser] = field(default_factory=list)
    posts: list[NewPost] = field(default_factory=list)
    follows: list[tuple[int, int]] = field(default_factory=list)
    likes: list[tuple[int, int, datetime]] = field(default_factory=list)
    impressions: list[Impression] = field(default_factory=list)
    liked: dict[int, int] = field(default_factory=dict)  # author by post
    known: Counter[str] = field(default_factory=Counter)
    bad: list[BadLine] = field(default_factory=list)
    user_ids: dict[str, int] = field(default_factory=dict)
    post_ids: dict[str, KnownPost] = field(default_factory=dict)


class _Bad(Exception):
    """Why the line at hand cannot be loaded."""


def resolve(
    lines: Sequence[NumberedLine],
    index: Index,
    *,
    media: Mapping[str, MediaFile | str],
    refused: Mapping[int, str],
    started_at_ms: int,
    now_ms: int,
) -> Batch:
    """What the lines ask for, in their order; equal arguments give equal ids.

    Args:
        lines: A batch.
        index: What was imported before.
        media: Each file that a post names, or why it cannot be used.
        refused: Reasons, by number, against lines that something else found bad.
        started_at_ms: When this file was begun: the time of what has none.
        now_ms: What is later than a little after now is refused.
    """
    resolver = _Resolver(index, media, started_at_ms, now_ms)
    for numbered in lines:
        try:
            if numbered.number in refused:
                raise _Bad(refused[numbered.number])
            resolver.add(numbered)
        except _Bad as bad:
            resolver.batch.bad.append(BadLine(numbered.number, numbered.line.kind, str(bad)))
    return resolver.batch


def snowflake(external: str, at_ms: int, is_taken: Callable[[int], bool]) -> int:
    """The id of an external one: time bits from `at_ms`, the 22 low bits from a hash.

    A decimal snowflake of about that time, as `feedmesh export` writes it, stays what it is. When
    the id is another's already, which among ids of one millisecond has a chance of 1 in 4 million
    each, the next free one is taken.
    """
    own = _as_snowflake(external)
    if own is not None and abs(created_ms(own) - at_ms) <= _OWN_WITHIN_MS:
        return own
    digest = hashlib.blake2b(external.encode(), digest_size=4).digest()
    low = int.from_bytes(digest, "big")
    base, mask = first_id_at(at_ms), (1 << _LOW_BITS) - 1
    while is_taken(base | low & mask):
        low += 1
    return base | low & mask


def _key(post_id: int, place: int, media: MediaFile) -> str:
    """The media object's key: the same again when a batch is repeated, and not to be guessed."""
    what = f"{post_id} {place} {media.digest}"
    name = hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
    return new_key(post_id, media.suffix, name)


def _as_snowflake(external: str) -> int | None:
    digits = external.isascii() and external.isdigit() and external[0] != "0"
    if not digits or len(external) > len(str(MAX_ID)):
        return None
    number = int(external)
    return number if number <= MAX_ID else None


class _Resolver:
    def __init__(
        self,
        index: Index,
        media: Mapping[str, MediaFile | str],
        started_at_ms: int,
        now_ms: int,
    ) -> None:
        self._index = index
        self._media = media
        self._started_at_ms = started_at_ms
        self._latest_ms = now_ms + _FUTURE_MS
        self._taken_users: set[int] = set()
        self._taken_posts: dict[int, KnownPost] = {}
        self._names: dict[str, int] = {}
        self.batch = Batch()

    def add(self, numbered: NumberedLine) -> None:
        """Raises _Bad."""
        match numbered.line:
            case UserLine() as line:
                self._add_user(numbered.number, line)
            case PostLine() as line:
                self._add_post(line)
            case FollowLine() as line:
                self.batch.follows.append((self._user(line.follower), self._user(line.author)))
            case LikeLine() as line:
                self._add_like(line)
            case ImpressionLine() as line:
                self._add_impression(line)

    def _add_user(self, number: int, line: UserLine) -> None:
        if self._find_user(line.id) is not None:
            self.batch.known["user"] += 1
            return
        at_ms = self._time_ms("created_at", line.created_at)
        first = self._names.setdefault(line.username.casefold(), number)
        if first != number:
            raise _Bad(f"username: {line.username!r} is taken by line {first}")
        user_id = snowflake(line.id, at_ms, self._is_user_id)
        self._taken_users.add(user_id)
        user = User(user_id, line.username, line.display_name or line.username, _instant(at_ms))
        self.batch.users.append(NewUser(number, user, line.password))
        self.batch.user_ids[line.id] = user_id

    def _add_post(self, line: PostLine) -> None:
        if self._find_post(line.id) is not None:
            self.batch.known["post"] += 1
            return
        author_id = self._user(line.author, "author")
        at_ms = self._time_ms("created_at", line.created_at)
        inspected = [self._inspected(item) for item in line.media]
        post_id = snowflake(line.id, at_ms, self._is_post_id)
        media = tuple(
            StoredMedia(_key(post_id, place, each), each.content_type, each.width, each.height)
            for place, each in enumerate(inspected)
        )
        post = StoredPost(post_id, author_id, line.text, line.tags, media, _instant(at_ms))
        files = tuple(each.path for each in inspected)
        self.batch.posts.append(NewPost(post, files, line.embedding))
        self._taken_posts[post_id] = KnownPost(post_id, author_id)
        self.batch.post_ids[line.id] = self._taken_posts[post_id]

    def _add_like(self, line: LikeLine) -> None:
        post = self._post(line.post)
        at_ms = self._time_ms("at", line.at)
        self.batch.likes.append((self._user(line.user), post.post_id, _instant(at_ms)))
        self.batch.liked[post.post_id] = post.author_id

    def _add_impression(self, line: ImpressionLine) -> None:
        user_id, post = self._user(line.user), self._post(line.post)
        at_ms = self._time_ms("at", line.at)
        what = f"{user_id}:{post.post_id}:{at_ms}:{line.position}"
        digest = hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
        self.batch.impressions.append(
            Impression(
                event_id=line.id or f"import-{digest}",
                user_id=user_id,
                post_id=post.post_id,
                author_id=post.author_id,
                seen_at_ms=at_ms,
                position=line.position,
                dwell_ms=line.dwell_ms,
            )
        )

    def _user(self, external: str, what: str = "user") -> int:
        user_id = self._find_user(external)
        if user_id is None:
            raise _Bad(f"{what}: no user {external!r} stands above or was imported before")
        return user_id

    def _post(self, external: str) -> KnownPost:
        post = self._find_post(external)
        if post is None:
            raise _Bad(f"post: no post {external!r} stands above or was imported before")
        return post

    def _find_user(self, external: str) -> int | None:
        found = self.batch.user_ids.get(external) or self._index.user(external)
        if found is None:
            # Imported under another name, and exported since under its own.
            own = _as_snowflake(external)
            found = own if own is not None and self._is_user_id(own) else None
        return found

    def _find_post(self, external: str) -> KnownPost | None:
        found = self.batch.post_ids.get(external) or self._index.post(external)
        if found is None:
            own = _as_snowflake(external)
            found = self._by_id(own) if own is not None else None
        return found

    def _is_user_id(self, user_id: int) -> bool:
        return user_id in self._taken_users or self._index.is_user_id(user_id)

    def _is_post_id(self, post_id: int) -> bool:
        return self._by_id(post_id) is not None

    def _by_id(self, post_id: int) -> KnownPost | None:
        return self._taken_posts.get(post_id) or self._index.post_by_id(post_id)

    def _inspected(self, item: MediaItem) -> MediaFile:
        found = self._media[item.file]
        if isinstance(found, str):
            raise _Bad(f"media: {item.file}: {found}")
        return found

    def _time_ms(self, name: str, at: datetime | None) -> int:
        if at is None:
            return self._started_at_ms
        at_ms = (at - _EPOCH) // _MS
        if at_ms < EPOCH_MS:
            raise _Bad(f"{name}: lies before {_instant(EPOCH_MS):%Y-%m-%d}, where ids begin")
        if at_ms > self._latest_ms:
            raise _Bad(f"{name}: lies in the future")
        return at_ms


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def _instant(at_ms: int) -> datetime:
    return _EPOCH + at_ms * _MS
