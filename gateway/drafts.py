"""What POST /post brings, read from JSON or from a form, with one set of rules for both."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from gateway import problems
from gateway.auth import media_type
from gateway.problems import BadRequest, TooLarge, UnsupportedMediaType
from gateway.schemas import MAX_MEDIA, MAX_TAG_LENGTH, MAX_TAGS, MAX_TEXT_LENGTH, PostDraft
from mesh.errors import InvalidArgument

JSON = "application/json"
FORM = "multipart/form-data"
MAX_FILE_BYTES = 10_000_000
_MAX_PARTS = 50

_TAGS_OF_FORM = {
    "type": "array",
    "items": {"type": "string"},
    "description": f"Repeated, or joined by commas; at most {MAX_TAGS} of {MAX_TAG_LENGTH}.",
}


def _json_schema() -> dict[str, Any]:
    """As `PostDraft` has it; and there has to be a text, or media."""
    schema = PostDraft.model_json_schema()
    for name, least in (("text", {"pattern": r"\S"}), ("media_keys", {"minItems": 1})):
        del schema["properties"][name]["default"]
        schema.setdefault("anyOf", []).append({"required": [name], "properties": {name: least}})
    return schema


# The body is read by hand, because it has two forms; this tells OpenAPI so.
OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": _json_schema()},
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "text": {"type": "string", "maxLength": MAX_TEXT_LENGTH},
                        "tags": _TAGS_OF_FORM,
                        "media": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "maxItems": MAX_MEDIA,
                            "description": "Images or videos of at most 10 MB each.",
                        },
                    },
                    "additionalProperties": False,
                }
            },
        },
    }
}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it came; its type is only what the client says."""

    data: bytes
    declared_type: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A post before it is published.

    Attributes:
        text, tags: By the rules.
        media: As they came along.
        media_keys: Of what was uploaded before.
    """

    text: str
    tags: tuple[str, ...]
    media: tuple[Upload, ...]
    media_keys: tuple[str, ...]

    def fingerprint(self) -> str:
        """Equal for equal content: what makes a repeated request a repeat."""
        said = [self.text, self.tags, *([self.media_keys] if self.media_keys else ())]
        digest = hashlib.sha256(json.dumps(said).encode())
        for upload in self.media:
            digest.update(hashlib.sha256(upload.data).digest())
        return digest.hexdigest()


async def read(request: Request) -> Draft:
    """The draft in the request's body.

    Raises `BadRequest`, `UnsupportedMediaType`, `TooLarge`, and `InvalidArgument` with the fields.
    """
    media: list[Upload] = []
    match media_type(request):
        case "application/json":
            draft = _checked(await _json(request))
        case "multipart/form-data":
            async with request.form(max_files=_MAX_PARTS, max_fields=_MAX_PARTS) as form:
                draft, media = _checked(_fields(form)), await _files(form)
        case _:
            raise UnsupportedMediaType(f"The body has to be {JSON} or {FORM}.")
    if not draft.text and not media and not draft.media_keys:
        raise InvalidArgument("A post has a text or media.", fields={"text": "is empty"})
    return Draft(draft.text, tuple(draft.tags), tuple(media), tuple(draft.media_keys))


async def _json(request: Request) -> Any:
    body = await request.body()
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON: {error}.") from None


def _checked(fields: Any) -> PostDraft:
    try:
        return PostDraft.model_validate(fields)
    except ValidationError as error:
        raise problems.invalid(error) from None


def _fields(form: FormData) -> dict[str, Any]:
    """The form's fields but the media, as JSON would have them."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name == "media":
            continue
        if isinstance(value, UploadFile):
            raise InvalidArgument("A file is not expected here.", fields={name: "is a file"})
        if name == "tags":
            fields.setdefault("tags", []).extend(_split(value))
        else:
            fields[name] = value
    return fields


def _split(tags: str) -> Iterator[str]:
    return (tag for tag in tags.split(",") if tag.strip())


async def _files(form: FormData) -> list[Upload]:
    # A browser's empty file input sends something without a name and content.
    uploads = [each for each in form.getlist("media") if each != ""]
    files = [each for each in uploads if isinstance(each, UploadFile)]
    if len(files) < len(uploads):
        raise InvalidArgument("The media are not files.", fields={"media": "is text"})
    files = [each for each in files if each.filename or each.size]
    if len(files) > MAX_MEDIA:
        raise InvalidArgument(
            f"A post has at most {MAX_MEDIA} media.", fields={"media": f"has {len(files)} files"}
        )
    if any((each.size or 0) > MAX_FILE_BYTES for each in files):
        raise TooLarge("A file is larger than 10 MB.", fields={"media": "is larger than 10 MB"})
    return [Upload(await each.read(), each.content_type or "") for each in files]
