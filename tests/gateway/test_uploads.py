"""Large media go straight to the media store, and become a post's by its request."""

import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gateway.tokens import UploadKeys
from gateway.uploads import MAX_IMAGE_BYTES, MAX_VIDEO_BYTES
from mesh.ids import MAX_ID
from stores.media.s3 import S3MediaStore
from tests.fixtures.buckets import fresh_bucket, opened
from tests.fixtures.stack import Stack
from tests.fixtures.world import Person, World
from tests.gateway.helpers import changed, png, problem

stack_only = pytest.mark.stack
VIDEO = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 100


@pytest.fixture
async def s3(world: World, stack: Stack) -> AsyncIterator[S3MediaStore]:
    """The gateway's media are in a bucket."""
    async with fresh_bucket(await stack.url("minio")) as url, opened(url) as store:
        with changed(world, media=store, uploads=store):
            yield store


@pytest.fixture
async def ada(world: World) -> Person:
    return await world.sign_up("ada")


async def ask(world: World, who: Person, content_type: str, size: int) -> dict[str, Any]:
    answer = await world.client.post(
        "/media/uploads", json={"content_type": content_type, "size": size}, headers=who.headers
    )
    assert answer.status_code == 201, answer.text
    ticket: dict[str, Any] = answer.json()
    return ticket


async def send(ticket: dict[str, Any], data: bytes) -> httpx.Response:
    """As a client does that knows nothing but the ticket."""
    async with httpx.AsyncClient() as client:
        return await client.post(
            ticket["url"], data=ticket["fields"], files={"file": ("file", data)}
        )


async def upload(world: World, who: Person, content_type: str, data: bytes) -> str:
    ticket = await ask(world, who, content_type, len(data))
    assert (await send(ticket, data)).status_code == 204
    return str(ticket["key"])


async def publish(world: World, who: Person, *keys: str, **headers: str) -> httpx.Response:
    return await world.client.post(
        "/post", json={"media_keys": keys}, headers={**who.headers, **headers}
    )


def refusal(answer: httpx.Response) -> str:
    [error] = problem(answer, 422, "invalid_argument")["errors"]
    assert error["field"] == "media_keys"
    return str(error["message"])


@given(user=st.integers(1, MAX_ID), other=st.integers(1, MAX_ID), flip=st.integers(0, 75))
def test_an_upload_key_is_its_users_only(user: int, other: int, flip: int) -> None:
    keys = UploadKeys("s" * 32)
    key = keys.new(user, ".mp4")
    assert keys.is_of(key, user)
    assert keys.is_of(key, other) == (user == other)
    assert not UploadKeys("t" * 32).is_of(key, user)
    tampered = key[:flip] + ("0" if key[flip] != "0" else "1") + key[flip + 1 :]
    assert not keys.is_of(tampered, user)


async def test_a_folder_takes_media_with_their_post_only(world: World, ada: Person) -> None:
    answer = await world.client.post(
        "/media/uploads", json={"content_type": "video/mp4", "size": 9}, headers=ada.headers
    )
    assert "form" in problem(answer, 409, "failed_precondition")["detail"]
    problem(await publish(world, ada, "uploads/x.mp4"), 409, "failed_precondition")


async def test_a_key_named_twice_or_too_many_are_refused(world: World, ada: Person) -> None:
    problem(await publish(world, ada, "a", "a"), 422, "invalid_argument")
    problem(await publish(world, ada, *"abcde"), 422, "invalid_argument")


@stack_only
async def test_an_uploaded_video_is_published_once_and_goes_with_its_post(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    key = await upload(world, ada, "video/mp4", VIDEO)
    answer = await publish(world, ada, key)
    assert answer.status_code == 201, answer.text
    [media] = answer.json()["media"]
    assert (media["content_type"], media["width"]) == ("video/mp4", None)
    async with httpx.AsyncClient() as client:
        assert (await client.get(media["url"])).content == VIDEO
        assert [each async for each in s3.stale(-3600)] == []
        assert "published already" in refusal(await publish(world, ada, key))
        path = f"/post/{answer.json()['post_id']}"
        assert (await world.client.delete(path, headers=ada.headers)).status_code == 204
        assert (await client.get(media["url"])).status_code in (403, 404)


@stack_only
async def test_an_uploaded_image_is_encoded_anew(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    exif = Image.Exif()
    exif[0x010F] = "the camera"
    data = io.BytesIO()
    Image.new("RGB", (300, 200), (1, 2, 3)).save(data, "JPEG", exif=exif)
    assert b"the camera" in data.getvalue()
    key = await upload(world, ada, "image/jpeg", data.getvalue())
    [media] = (await publish(world, ada, key)).json()["media"]
    assert (media["content_type"], media["width"], media["height"]) == ("image/jpeg", 300, 200)
    async with httpx.AsyncClient() as client:
        assert b"the camera" not in (await client.get(media["url"])).content


@stack_only
async def test_uploads_are_published_in_the_order_of_their_keys(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    keys = [
        await upload(world, ada, "image/png", png((10, 20))),
        await upload(world, ada, "video/mp4", VIDEO),
        await upload(world, ada, "image/png", png((30, 40))),
    ]
    media = (await publish(world, ada, *keys)).json()["media"]
    assert [each["width"] for each in media] == [10, None, 30]


@stack_only
async def test_only_its_uploader_publishes_an_upload(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    key = await upload(world, ada, "video/mp4", VIDEO)
    ben = await world.sign_up("ben")
    assert "of yours" in refusal(await publish(world, ben, key))
    assert (await publish(world, ada, key)).status_code == 201


@stack_only
async def test_what_was_never_uploaded_is_refused(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    ticket = await ask(world, ada, "video/mp4", 100)
    assert "not been uploaded" in refusal(await publish(world, ada, ticket["key"]))


@stack_only
async def test_what_only_pretends_to_be_media_is_refused(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    for content_type in ("video/mp4", "image/png"):
        key = await upload(world, ada, content_type, b"<script>alert(1)</script>")
        assert "damaged or none of" in refusal(await publish(world, ada, key))
    stored = s3.keys()
    assert [each async for each in stored] == []


@stack_only
async def test_what_comes_after_publishing_changes_nothing(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    """A form is good for an hour; what was published is a copy."""
    ticket = await ask(world, ada, "video/mp4", len(VIDEO))
    assert (await send(ticket, VIDEO)).status_code == 204
    [media] = (await publish(world, ada, ticket["key"])).json()["media"]
    assert (await send(ticket, b"<script>")).status_code == 204
    async with httpx.AsyncClient() as client:
        assert (await client.get(media["url"])).content == VIDEO


@stack_only
async def test_a_form_takes_no_more_than_was_asked_for(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    ticket = await ask(world, ada, "video/mp4", len(VIDEO) - 1)
    assert (await send(ticket, VIDEO)).status_code == 400
    expires_at = datetime.fromisoformat(ticket["expires_at"])
    assert timedelta(minutes=50) < expires_at - datetime.now(UTC) < timedelta(minutes=70)


@stack_only
@pytest.mark.parametrize(
    ("content_type", "size"),
    [
        ("video/mp4", MAX_VIDEO_BYTES + 1),
        ("image/png", MAX_IMAGE_BYTES + 1),
        ("image/svg+xml", 9),
        ("video/mp4", 0),
    ],
)
async def test_too_large_or_of_another_type_gets_no_form(
    world: World, s3: S3MediaStore, ada: Person, content_type: str, size: int
) -> None:
    answer = await world.client.post(
        "/media/uploads", json={"content_type": content_type, "size": size}, headers=ada.headers
    )
    problem(answer, 422, "invalid_argument")


@stack_only
async def test_a_repeated_request_answers_as_the_first_did(
    world: World, s3: S3MediaStore, ada: Person
) -> None:
    key = await upload(world, ada, "video/mp4", VIDEO)
    first = await publish(world, ada, key, **{"Idempotency-Key": "k"})
    assert first.status_code == 201
    again = await publish(world, ada, key, **{"Idempotency-Key": "k"})
    assert again.json() == first.json()
    other = await upload(world, ada, "video/mp4", VIDEO)
    problem(
        await publish(world, ada, other, **{"Idempotency-Key": "k"}), 409, "failed_precondition"
    )
