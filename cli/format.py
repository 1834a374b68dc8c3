"""The import format, JSON Lines: one object a line, told apart by `kind`.

`docs/import-format.md` describes it for people; these models are what is accepted.
"""

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, Self, Union

import numpy as np
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from mesh.packing import DIMENSIONS, Vector, pack

MAX_LINE_BYTES = 1 << 20
# The limits of the REST interface, which serves and takes the same posts.
MAX_TEXT_LENGTH = 5_000
MAX_TAGS = 10
MAX_TAG_LENGTH = 50
MAX_MEDIA = 4
_UNIT_WITHIN = 1e-5


def _to_vector(value: object) -> Vector:
    """384 numbers, or the base64 of as many little-endian float32, scaled to length 1."""
    if isinstance(value, np.ndarray):
        vector = value
    elif isinstance(value, str):
        try:
            vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4")
        except (binascii.Error, ValueError):
            raise ValueError("is not the base64 of float32 numbers") from None
    elif isinstance(value, list) and all(type(each) in (int, float) for each in value):
        try:
            with np.errstate(over="ignore"):
                vector = np.array(value, "<f4")
        except OverflowError:
            raise ValueError("holds a number too large for float32") from None
    else:
        raise ValueError("is neither a list of numbers nor base64")
    if len(vector) != DIMENSIONS:
        raise ValueError(f"has {len(vector)} numbers where {DIMENSIONS} were expected")
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(length) or length == 0:
        raise ValueError("has no direction: its length is 0 or not finite")
    unit = vector if abs(length - 1) < _UNIT_WITHIN else vector / length
    return unit.astype(np.float32)


def _normal_tag(tag: object) -> object:
    """As the REST interface keeps tags; what is no string is left for the next check."""
    return tag.strip().removeprefix("#").strip().lower() if isinstance(tag, str) else tag


def _to_base64(vector: Vector) -> str:
    return base64.b64encode(pack(vector)).decode()


def _once(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tags))


def _to_rfc3339(at: datetime) -> str:
    """In UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


ExternalId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Time = Annotated[AwareDatetime, PlainSerializer(_to_rfc3339)]
Embedding = Annotated[Vector, PlainValidator(_to_vector), PlainSerializer(_to_base64)]
Tag = Annotated[
    str,
    BeforeValidator(_normal_tag),
    StringConstraints(min_length=1, max_length=MAX_TAG_LENGTH),
]


class _Line(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True
    )


class UserLine(_Line):
    """Without a password the user cannot log in."""

    kind: Literal["user"] = "user"
    id: ExternalId
    username: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{1,39}$")]
    display_name: (
        Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)] | None
    ) = None
    created_at: Time | None = None
    password: Annotated[str, StringConstraints(min_length=8, max_length=200)] | None = None


class FollowLine(_Line):
    kind: Literal["follow"] = "follow"
    follower: ExternalId
    author: ExternalId

    @model_validator(mode="after")
    def _two_people(self) -> Self:
        if self.follower == self.author:
            raise ValueError("nobody follows themselves")
        return self


class MediaItem(_Line):
    """A file beside the JSON Lines file, or below its folder."""

    file: Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class PostLine(_Line):
    kind: Literal["post"] = "post"
    id: ExternalId
    author: ExternalId
    text: Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_TEXT_LENGTH)]
    tags: Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS), AfterValidator(_once)] = ()
    created_at: Time | None = None
    media: Annotated[tuple[MediaItem, ...], Field(max_length=MAX_MEDIA)] = ()
    embedding: Embedding | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.text and not self.media:
            raise ValueError("a post needs a text or media")
        return self


class LikeLine(_Line):
    kind: Literal["like"] = "like"
    user: ExternalId
    post: ExternalId
    at: Time | None = None


class ImpressionLine(_Line):
    """`id` makes repeats recognisable; without it, user, post and time do."""

    kind: Literal["impression"] = "impression"
    user: ExternalId
    post: ExternalId
    at: Time
    dwell_ms: Annotated[int, Field(ge=0, le=86_400_000)] | None = None
    position: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    id: ExternalId | None = None


Line = Union[UserLine, FollowLine, PostLine, LikeLine, ImpressionLine]  # noqa: UP007  for mypy
KINDS = ("user", "follow", "post", "like", "impression")

_ADAPTER: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Discriminator("kind")])


def parse(raw: bytes) -> Line:
    """One line. Raises ValueError with a reason fit for people."""
    try:
        return _ADAPTER.validate_json(raw)
    except ValidationError as error:
        raise ValueError(_reason(error)) from None


def dump(line: Line) -> bytes:
    """The line as `parse` reads it, with its newline."""
    return line.model_dump_json(exclude_none=True).encode() + b"\n"


def dump_all(lines: Sequence[Line]) -> bytes:
    """The lines, one after the other."""
    return b"".join(map(dump, lines))


def _reason(error: ValidationError) -> str:
    # Never the input itself: it may hold a password.
    found = error.errors(include_url=False, include_context=False, include_input=False)
    reasons = []
    for each in found[:3]:
        field = ".".join(str(part) for part in each["loc"] if part not in KINDS)
        what = each["msg"].removeprefix("Value error, ")
        reasons.append(f"{field}: {what}" if field else what)
    return "; ".join(reasons) + ("; and more" if len(found) > len(reasons) else "")
