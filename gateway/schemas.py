"""What goes over the wire of the REST interface. Ids are decimal strings, times are UTC."""

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from mesh.ids import MAX_ID

_EXAMPLE_ID = "857234987234082816"
_DIGITS = len(str(MAX_ID))
# JavaScript's numbers end at 53 bits, hence strings. The schema stops a little below 2^63.
_ID_SCHEMA = {
    "type": "string",
    "pattern": "^([1-9][0-9]{0,17}|[1-8][0-9]{18})$",
    "examples": [_EXAMPLE_ID],
}


def parse_id(value: object) -> int:
    """The id that a decimal string from 1 to 2^63-1 stands for; raises ValueError."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        number = int(value)
        if 1 <= number <= MAX_ID and value[0] != "0":
            return number
    raise ValueError("must be an id: a decimal string from 1 to 2^63-1")


def _normal_tag(tag: str) -> str:
    tag = tag.strip().removeprefix("#").strip().lower()
    if not 1 <= len(tag) <= MAX_TAG_LENGTH:
        raise ValueError(f"a tag has 1 to {MAX_TAG_LENGTH} characters")
    return tag


def _unreserved(username: str) -> str:
    if username.lower().startswith(RESERVED_PREFIX):
        raise ValueError(f"names that begin with {RESERVED_PREFIX} are reserved")
    return username


MAX_TEXT_LENGTH = 5_000
MAX_TAGS = 10
MAX_TAG_LENGTH = 50
MAX_IMPRESSIONS = 200
MAX_MEDIA = 4
# The names of users of an external issuer begin so.
RESERVED_PREFIX = "ext-"

InId = Annotated[int, BeforeValidator(parse_id), WithJsonSchema(_ID_SCHEMA)]
OutId = Annotated[int, PlainSerializer(str, return_type=str), WithJsonSchema(_ID_SCHEMA)]
Tag = Annotated[
    str,
    AfterValidator(_normal_tag),
    WithJsonSchema({"type": "string", "pattern": r"[^\s#]", "maxLength": MAX_TAG_LENGTH}),
]
Username = Annotated[
    str,
    StringConstraints(min_length=2, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"),
    AfterValidator(_unreserved),
]
FeedId = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
Source = Literal["social", "discovery", "popular"]


class Input(BaseModel):
    """A request's body: unknown fields are refused, so that a typing error is not silently lost."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    class FieldError(BaseModel):
        """What is wrong with one field."""

        field: str
        message: str

    type: str = Field(examples=["urn:feedmesh:problem:not_found"])
    title: str = Field(examples=["Not found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["There is no such post."])
    instance: str = Field(examples=[f"/post/{_EXAMPLE_ID}"])
    trace_id: str = Field(examples=["4bf92f3577b34da6a3ce929d0e0e4736"])
    errors: list[FieldError] = []


# -- users ------------------------------------------------------------------------------------


class SignUp(Input):
    username: Username = Field(examples=["ada"])
    password: str = Field(min_length=8, max_length=200, examples=["correct-horse-battery"])
    display_name: (
        Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)] | None
    ) = Field(None, examples=["Ada Lovelace"])


class Token(BaseModel):
    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105  the kind, not a secret
    expires_in: int = Field(description="Seconds.", examples=[86400])


class UserSummary(BaseModel):
    user_id: OutId
    username: str = Field(examples=["ada"])
    display_name: str = Field(examples=["Ada Lovelace"])


class UserProfile(UserSummary):
    follower_count: int
    following_count: int
    following: bool = Field(description="Whether you follow them.")
    blocking: bool = Field(description="Whether you block them.")
    created_at: datetime


# -- posts ------------------------------------------------------------------------------------


class PostDraft(Input):
    text: Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_TEXT_LENGTH)] = (
        Field("", examples=["The first rule of sourdough: feed it."])
    )
    tags: list[Tag] = Field([], max_length=MAX_TAGS, examples=[["baking"]])
    media_keys: list[Annotated[str, StringConstraints(max_length=200)]] = Field(
        [],
        max_length=MAX_MEDIA,
        description="Of your uploads by `POST /media/uploads`, each once.",
        examples=[[]],
    )

    @model_validator(mode="after")
    def _without_repeats(self) -> Self:
        self.tags = list(dict.fromkeys(self.tags))
        if len(set(self.media_keys)) < len(self.media_keys):
            raise ValueError("an upload is named twice in media_keys")
        return self


class UploadRequest(Input):
    content_type: Literal[
        "image/jpeg", "image/png", "image/webp", "video/mp4", "video/quicktime", "video/webm"
    ] = Field(examples=["video/mp4"])
    size: int = Field(
        ge=1,
        description="Bytes: at most 25 MB for an image, 500 MB for a video.",
        examples=[64_000_000],
    )


class UploadTicket(BaseModel):
    key: str = Field(description="What `media_keys` of `POST /post` takes, once.")
    url: str = Field(description="Where the form is sent to, by POST as multipart/form-data.")
    fields: dict[str, str] = Field(description="The form's fields, which come before `file`.")
    expires_at: datetime = Field(description="Until then the upload must have begun.")


class Media(BaseModel):
    url: str
    content_type: str = Field(examples=["image/jpeg"])
    width: int | None = Field(description="Pixels; null when unknown.", examples=[1200])
    height: int | None = Field(examples=[800])


class Post(BaseModel):
    post_id: OutId
    author: UserSummary
    text: str
    tags: list[str]
    media: list[Media]
    like_count: int
    liked: bool = Field(description="Whether you like it.")
    created_at: datetime


class PostPage(BaseModel):
    items: list[Post]
    next_cursor: str | None = Field(description="Null on the last page.")


# -- impressions ------------------------------------------------------------------------------


class ImpressionReport(Input):
    post_id: InId
    position: int | None = Field(
        None, strict=True, ge=0, le=10_000, description="Place on the page, from 0."
    )
    feed_id: FeedId | None = Field(None, description="The feed it was shown in.")
    dwell_ms: int | None = Field(
        None, strict=True, ge=0, le=86_400_000, description="Milliseconds on screen."
    )


class ImpressionBatch(Input):
    items: list[ImpressionReport] = Field(min_length=1, max_length=MAX_IMPRESSIONS)


class ImpressionReceipt(BaseModel):
    accepted: int
    ignored: int = Field(description="Reports of posts that do not exist.")


# -- the feed ---------------------------------------------------------------------------------


class FeedItem(Post):
    source: Source
    score: float = Field(description="What the ranker gave it; comparable within one feed.")
    reason: str = Field(examples=["You follow Ada Lovelace"])


class FeedPage(BaseModel):
    feed_id: str
    items: list[FeedItem]
    next_cursor: str | None = Field(
        description="For the next page of this very feed; null on the last page."
    )
    degraded: list[str] = Field(
        description="What was away while this feed was made.", examples=[["vectors"]]
    )
    trace_id: str


class Fate(BaseModel):
    """What became of one candidate, and why."""

    post_id: OutId
    author_id: OutId | None = Field(description="Null when the post no longer existed.")
    source: str = Field(
        description="social, discovery, popular or exploration.", examples=["social"]
    )
    retrieval_score: float = Field(description="Comparable within one source only.")
    verdict: str = Field(
        description="Of the filter: kept, penalized, seen, own, blocked, deleted, duplicate, "
        "not_followed or over_limit.",
        examples=["kept"],
    )
    penalty: float = Field(description="Subtracted from the score, 0 to 1.")
    score: float | None = Field(description="Null when it was not ranked, as the next two.")
    topic_similarity: float | None = Field(description="Cosine to your interests, -1 to 1.")
    author_affinity: float | None = Field(description="0 to 1.")
    position: int | None = Field(description="Place in the whole feed, from 0; null when left out.")
    placement: str | None = Field(
        description="Of re-ranking: by_score, author_spread, discovery_share or exploration.",
        examples=["by_score"],
    )


class FeedFacts(BaseModel):
    feed_id: str
    created_at: datetime
    model_version: str = Field(examples=["heuristic/1"])
    degraded: list[str]
    trace_id: str = Field(description="Of the request that made the feed.")


class Explanation(FeedFacts):
    """The fate of every candidate of one feed, in the order of retrieval."""

    candidates: list[Fate]


class FateExplanation(FeedFacts, Fate):
    """The fate of one candidate."""


# -- operations -------------------------------------------------------------------------------


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    ready: bool
    parts: dict[str, str] = Field(
        description='Each part with "ok" or what is wrong with it.',
        examples=[{"sql": "ok", "candidate_svc": "ok"}],
    )


class TraceSummary(BaseModel):
    trace_id: str = Field(examples=["57e391c826798bca987589913106553a"])
    name: str = Field(description="Of its first span.", examples=["GET /feed"])
    started_at: datetime
    duration_ms: float = Field(description="From its first start to its last end so far.")
    spans: int
    errors: int = Field(description="Spans with the status ERROR.")
    services: list[str] = Field(examples=[["gateway", "candidate_svc"]])


class Traces(BaseModel):
    items: list[TraceSummary]


def utc(milliseconds: int) -> datetime:
    """A time from milliseconds since the epoch."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
