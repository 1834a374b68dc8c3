"""GET /media/{key}: what a media folder holds. Other media stores serve their objects themselves.

A key cannot be guessed and its object never changes, so there is no login and the answer may be
kept for ever.
"""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Response

from gateway.backends import Here
from gateway.problems import responses
from mesh.errors import NotFound

router = APIRouter(tags=["media"])
Key = Annotated[str, Path(max_length=200)]
_FOREVER = "public, max-age=31536000, immutable"
_DESCRIBED = {
    **responses(NotFound, public=True),
    200: {"description": "The object.", "content": {"image/*": {}, "video/*": {}}},
    304: {"description": "The client has it already."},
}


@router.get("/media/{key:path}", response_class=Response, responses=_DESCRIBED)
async def download(here: Here, key: Key, if_none_match: Annotated[str, Header()] = "") -> Response:
    """An image or a video."""
    headers = {"ETag": f'"{key}"', "Cache-Control": _FOREVER}
    data, content_type = await here.media.get(key)
    if headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    # A browser shall never take it for a page of ours, whatever its bytes look like.
    headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    return Response(data, headers=headers, media_type=content_type)


@router.head("/media/{key:path}", include_in_schema=False)
async def describe(here: Here, key: Key) -> Response:
    """The same without the object."""
    return await download(here, key)
