"""POST /media/uploads: large media go straight to the store, and a post takes them from there.

What arrives is nobody's media yet: it has no public URL. The post that names its key gets a copy,
made after the content was looked at: images are encoded anew as those of a form are, videos are
copied by the store itself. A form that is used a second time changes nothing of that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Depends

from gateway.auth import Me, require_json
from gateway.backends import Backends, Here
from gateway.problems import BadRequest, TooLarge, UnsupportedMediaType, responses
from gateway.schemas import UploadRequest, UploadTicket
from mesh import telemetry
from mesh.errors import FailedPrecondition, InvalidArgument, NotFound
from stores.media.images import CONTENT_TYPES, PreparedMedia, new_key, prepare, video_suffix
from stores.media.port import Uploaded, UploadStore
from stores.posts.port import StoredMedia

router = APIRouter(tags=["media"])
# Images are read into memory here; videos are not.
MAX_IMAGE_BYTES = 25_000_000
MAX_VIDEO_BYTES = 500_000_000
_GOOD_FOR = timedelta(hours=1)
_BEGINNING = 64
_SUFFIXES = {content_type: suffix for suffix, content_type in CONTENT_TYPES.items()}
# A decoded image may take 160 MB.
_preparing = asyncio.Semaphore(2)


@dataclass(frozen=True, slots=True)
class Medium:
    """One of a post's media, checked, and how its object is stored."""

    stored: StoredMedia
    store: Callable[[], Awaitable[None]]


@router.post(
    "/media/uploads",
    status_code=201,
    dependencies=[Depends(require_json)],
    responses=responses(BadRequest, FailedPrecondition, TooLarge, UnsupportedMediaType),
)
async def ask(here: Here, me: Me, request: UploadRequest) -> UploadTicket:
    """A form by which you upload one large image or video, straight to the media store.

    Send `fields` and then the file, as `file`, to `url` as multipart/form-data; then publish with
    the key in `media_keys`. 409 where media can only be sent as a form to `POST /post`.
    """
    store = _store(here)
    limit = max_bytes(request.content_type)
    if request.size > limit:
        raise InvalidArgument(
            "The file is too large.", fields={"size": f"is above {limit:,} bytes"}
        )
    key = here.upload_keys.new(me, _SUFFIXES[request.content_type])
    expires_at = datetime.now(UTC) + _GOOD_FOR
    form = store.form(key, request.content_type, request.size, expires_at)
    return UploadTicket(key=key, url=form.url, fields=dict(form.fields), expires_at=expires_at)


def max_bytes(content_type: str) -> int:
    """The most that an upload of the type may have."""
    return MAX_VIDEO_BYTES if content_type.startswith("video/") else MAX_IMAGE_BYTES


async def uploaded(here: Backends, me: int, post_id: int, keys: Sequence[str]) -> list[Medium]:
    """The media that the user has uploaded, for a post of theirs.

    Raises `InvalidArgument` when one was not uploaded by them, or is no image or video.
    """
    if not keys:
        return []
    store = _store(here)
    for key in keys:
        if not here.upload_keys.is_of(key, me):
            raise _refused("is not the key of an upload of yours")
    return [await _uploaded(here, store, post_id, key) for key in keys]


async def prepared(data: bytes, declared_type: str) -> PreparedMedia:
    """What `prepare` makes of a file, in a thread. Raises `InvalidArgument`."""
    # With the wait for one's turn.
    with telemetry.span("prepare media", attributes={"feed.media.bytes": len(data)}):
        async with _preparing:
            return await asyncio.to_thread(prepare, data, declared_type)


def by_gateway(here: Backends, post_id: int, media: PreparedMedia) -> Medium:
    """A file that is here, in the form in which it is stored."""
    key = new_key(post_id, media.suffix)
    return Medium(
        StoredMedia(key, media.content_type, media.width, media.height),
        lambda: here.media.put(key, media.data, media.content_type),
    )


async def _uploaded(here: Backends, store: UploadStore, post_id: int, key: str) -> Medium:
    try:
        found = await store.look(key)
        beginning = await store.read(key, found.version, _BEGINNING)
        suffix = video_suffix(beginning)
        # What it is decides, not what it was called.
        if found.size > max_bytes(CONTENT_TYPES[suffix] if suffix else "image/*"):
            raise _refused("is larger than an upload may be")
        if suffix:
            return _copied(store, post_id, key, found, suffix)
        data = await store.read(key, found.version, found.size)
    except NotFound:
        raise _refused("has not been uploaded, or was published already") from None
    except FailedPrecondition:
        raise _refused("was uploaded again meanwhile") from None
    try:
        return by_gateway(here, post_id, await prepared(data, ""))
    except InvalidArgument as error:
        raise _refused(error.fields.get("media", error.detail)) from None


def _copied(store: UploadStore, post_id: int, key: str, found: Uploaded, suffix: str) -> Medium:
    media = StoredMedia(new_key(post_id, suffix), CONTENT_TYPES[suffix], 0, 0)
    return Medium(media, lambda: store.take(key, found.version, media.key, media.content_type))


def _store(here: Backends) -> UploadStore:
    if here.uploads is None:
        raise FailedPrecondition(
            "Media cannot be uploaded apart from their post here; send them with it, as a form."
        )
    return here.uploads


def _refused(what: str) -> InvalidArgument:
    return InvalidArgument("An upload cannot be published.", fields={"media_keys": what})
