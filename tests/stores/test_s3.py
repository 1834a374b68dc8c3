"""What a bucket does beside what every media store does."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mesh import deadlines
from mesh.errors import FailedPrecondition, Internal, NotFound, Unavailable
from mesh.settings import Settings
from stack.daemon import Daemon
from stack.place import Place, Port
from stack.servers import minio
from stores.connect import Connections
from stores.media.images import new_key
from stores.media.s3 import UPLOADS, Location, S3MediaStore
from tests.fixtures.buckets import fresh_bucket, opened
from tests.fixtures.spans import attribute
from tests.fixtures.stack import Stack
from tests.fixtures.world import free_ports

stack_only = pytest.mark.stack
SOON = timedelta(minutes=5)
KEYS = {"AWS_ACCESS_KEY_ID": "from-env", "AWS_SECRET_ACCESS_KEY": "env-secret"}


def upload_key() -> str:
    return f"{UPLOADS}{new_key(7, '.mp4')[3:]}"


def key() -> str:
    return new_key(7, ".png")


@pytest.fixture
async def url(stack: Stack) -> AsyncIterator[str]:
    async with fresh_bucket(await stack.url("minio")) as url:
        yield url


@pytest.fixture
async def store(url: str) -> AsyncIterator[S3MediaStore]:
    async with opened(url) as store:
        yield store


async def every(keys: AsyncIterator[str]) -> list[str]:
    return [key async for key in keys]


async def send(
    store: S3MediaStore, key: str, data: bytes, changes: Mapping[str, str] | None = None
) -> httpx.Response:
    form = store.form(key, "video/mp4", 1000, datetime.now(UTC) + SOON)
    async with httpx.AsyncClient() as client:
        return await client.post(
            form.url, data={**form.fields, **(changes or {})}, files={"file": ("a.mp4", data)}
        )


# -- the URL ----------------------------------------------------------------------------------


@given(secret=st.text(min_size=1, max_size=40), access=st.text(min_size=1, max_size=40))
def test_a_key_and_a_secret_are_read_as_they_were_quoted(secret: str, access: str) -> None:
    url = f"s3+http://{quote(access, safe='')}:{quote(secret, safe='')}@h:9000/media"
    at = Location.parse(url, {})
    assert (at.access_key, at.secret_key, at.host, at.bucket) == (access, secret, "h:9000", "media")
    assert not at.is_secure


def test_what_the_url_does_not_say_comes_from_the_environment() -> None:
    env = {**KEYS, "AWS_SESSION_TOKEN": "token", "AWS_REGION": "eu-west-1"}
    at = Location.parse("s3://s3.eu-west-1.amazonaws.com/media", env)
    assert (at.access_key, at.secret_key, at.session_token) == ("from-env", "env-secret", "token")
    assert (at.region, at.is_secure) == ("eu-west-1", True)
    assert at.public_url == "https://s3.eu-west-1.amazonaws.com/media"
    other = Location.parse("s3://k:s@host/media?region=auto", env)
    assert (other.access_key, other.session_token, other.region) == ("k", None, "auto")


@pytest.mark.parametrize(
    ("url", "env"),
    [
        ("s3://host", KEYS),
        ("s3:///bucket", KEYS),
        ("s3://host/bucket/folder", KEYS),
        ("s3://host/bucket", {}),
        ("s3://host/No", KEYS),
        ("s3://host/bucket?typo=1", KEYS),
        ("s3://host/bucket?presigned_s=-1", KEYS),
        ("s3://host/bucket?presigned_s=604801", KEYS),
        ("s3://host/bucket?presigned_s=60&public_url=https://cdn.example", KEYS),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_the_settings_name(
    url: str, env: Mapping[str, str]
) -> None:
    with pytest.raises(ValueError, match="FEED_MEDIA_URL"):
        Location.parse(url, env)


async def test_the_scheme_picks_the_adapter() -> None:
    settings = Settings(media_url="s3+http://k:s@127.0.0.1:1/media")
    async with Connections(settings) as stores:
        assert isinstance(stores.media(), S3MediaStore)
        assert isinstance(stores.uploads(), S3MediaStore)
    async with Connections(Settings()) as stores:
        assert stores.uploads() is None
    with pytest.raises(ValueError, match="FEED_MEDIA_URL begins with s4://; known is file"):
        Connections(Settings(media_url="s4://x/y")).media()


async def test_a_cdn_leads_to_the_object() -> None:
    async with opened("s3://k:s@h/media?public_url=https://cdn.example/m/") as store:
        assert store.url("ab/abc.png") == "https://cdn.example/m/ab/abc.png"


async def test_a_signed_url_stays_the_same_for_a_while() -> None:
    async with opened("s3://k:s@h/media?presigned_s=600000") as store:
        urls = {store.url("ab/abc.png") for _ in range(20)}
        assert len(urls) <= 2
        assert all("X-Amz-Signature" in url for url in urls)


# -- downloads --------------------------------------------------------------------------------


@stack_only
async def test_everybody_reads_media_but_not_uploads(store: S3MediaStore) -> None:
    image, upload = key(), upload_key()
    await store.put(image, b"picture", "image/png")
    assert (await send(store, upload, b"video")).status_code == 204
    async with httpx.AsyncClient() as client:
        answer = await client.get(store.url(image))
        assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/png")
        assert "immutable" in answer.headers["cache-control"]
        assert (await client.get(store.url(upload))).status_code == 403


@stack_only
async def test_a_signed_url_reads_what_is_not_public(url: str, store: S3MediaStore) -> None:
    upload = upload_key()
    await send(store, upload, b"private")
    async with opened(f"{url}?presigned_s=600") as signing, httpx.AsyncClient() as client:
        assert (await client.get(signing.url(upload))).content == b"private"
        tampered = signing.url(upload).replace("X-Amz-Expires=600", "X-Amz-Expires=601")
        assert (await client.get(tampered)).status_code == 403


# -- uploads ----------------------------------------------------------------------------------


@stack_only
async def test_an_upload_becomes_media(store: S3MediaStore) -> None:
    upload, media = upload_key(), new_key(7, ".mp4")
    assert (await send(store, upload, b"0123456789")).status_code == 204
    found = await store.look(upload)
    assert found.size == 10
    assert await store.read(upload, found.version, 4) == b"0123"
    assert await every(store.keys()) == []
    await store.take(upload, found.version, media, "video/mp4")
    await store.discard([upload, upload_key()])
    assert await store.get(media) == (b"0123456789", "video/mp4")
    with pytest.raises(NotFound):
        await store.look(upload)


@stack_only
async def test_a_form_is_good_for_its_key_type_and_size_only(store: S3MediaStore) -> None:
    upload = upload_key()
    assert (await send(store, upload, b"x" * 1001)).status_code == 400
    assert (await send(store, upload, b"")).status_code == 400
    for wrong in ({"Content-Type": "text/html"}, {"key": upload_key()}, {"x-amz-meta-more": "1"}):
        assert (await send(store, upload, b"x", wrong)).status_code == 403
    with pytest.raises(NotFound):
        await store.look(upload)


@stack_only
async def test_an_upload_that_was_replaced_is_another_version(store: S3MediaStore) -> None:
    upload = upload_key()
    await send(store, upload, b"a video")
    looked_at = await store.look(upload)
    await send(store, upload, b"something else")
    with pytest.raises(FailedPrecondition):
        await store.read(upload, looked_at.version, 10)
    with pytest.raises(FailedPrecondition):
        await store.take(upload, looked_at.version, new_key(7, ".mp4"), "video/mp4")
    assert await every(store.keys()) == []


@stack_only
async def test_old_uploads_are_listed_and_discarded(store: S3MediaStore) -> None:
    uploads = {upload_key() for _ in range(3)}
    for upload in uploads:
        await send(store, upload, b"video")
    image = key()
    await store.put(image, b"picture", "image/png")
    assert await every(store.stale(3600)) == []
    stale = await every(store.stale(-3600))
    assert set(stale) == uploads
    # Media are not uploads, whoever says so.
    await store.discard([*stale, image])
    assert await every(store.stale(-3600)) == []
    assert await every(store.keys()) == [image]


@stack_only
async def test_more_objects_than_one_answer_lists(store: S3MediaStore) -> None:
    keys = [key() for _ in range(1100)]
    gate = asyncio.Semaphore(32)

    async def put(each: str) -> None:
        async with gate:
            await store.put(each, b"x", "image/png")

    await asyncio.gather(*(put(each) for each in keys))
    assert sorted(await every(store.keys())) == sorted(keys)
    await store.delete(keys)
    assert await every(store.keys()) == []


# -- failures ---------------------------------------------------------------------------------


@stack_only
async def test_a_wrong_secret_is_nobodys_fault_but_ours(url: str) -> None:
    at = Location.parse(url, {})
    async with opened(url.replace(at.secret_key, "wrong")) as store:
        with pytest.raises(Internal):
            await store.put(key(), b"picture", "image/png")


async def test_nobody_there_is_unavailable() -> None:
    [port] = free_ports(1)
    async with opened(f"s3+http://k:s@127.0.0.1:{port}/media") as store:
        with pytest.raises(Unavailable):
            await store.put(key(), b"picture", "image/png")


async def test_a_server_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    """And it does not hold the loop, nor the calls that wait for a thread."""
    held = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"s3+http://k:s@127.0.0.1:{port}/media") as store:
            began = time.monotonic()
            with deadlines.within(0.5):
                calls = [store.get(key()) for _ in range(40)]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in outcomes} == {Unavailable}
            assert time.monotonic() - began < 10
        for writer in held:
            writer.close()


@stack_only
async def test_a_server_that_stops_is_unavailable_and_works_when_it_is_back(
    tmp_path: Path,
) -> None:
    first_port = free_ports(1)[0] - Port.MINIO
    place = replace(Place.of(Settings()), first_port=first_port, folder=tmp_path)
    daemon = Daemon(await minio.server(place), place)
    await daemon.start()
    try:
        async with opened(daemon.server.url) as store:
            image = key()
            await store.put(image, b"picture", "image/png")
            await daemon.kill()
            with pytest.raises(Unavailable), deadlines.within(5):
                await store.get(image)
            await daemon.start()
            assert await store.get(image) == (b"picture", "image/png")
    finally:
        await daemon.stop()


# -- spans ------------------------------------------------------------------------------------


@stack_only
async def test_each_call_is_a_client_span(store: S3MediaStore, spans: InMemorySpanExporter) -> None:
    image = key()
    await store.put(image, b"picture", "image/png")
    with pytest.raises(NotFound):
        await store.get(key())
    await store.delete([image])
    put, get, delete = spans.get_finished_spans()
    assert [each.name for each in (put, get, delete)] == [
        "S3/PutObject", "S3/GetObject", "S3/DeleteObjects",
    ]  # fmt: skip
    assert {each.kind for each in (put, get, delete)} == {SpanKind.CLIENT}
    assert attribute(put, "aws.s3.key") == image
    assert attribute(put, "http.request.method") == "PUT"
    assert attribute(put, "server.address") == "127.0.0.1"
    assert attribute(put, "feed.media.bytes") == 7
    assert put.status.status_code == StatusCode.UNSET
    assert attribute(get, "http.response.status_code") == 404
    assert attribute(get, "error.type") == "NOT_FOUND"
    assert get.status.status_code == StatusCode.ERROR


async def test_a_call_that_is_cancelled_says_so(spans: InMemorySpanExporter) -> None:
    waiting = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        waiting.set()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"s3+http://k:s@127.0.0.1:{port}/media") as store:
            with deadlines.within(5):
                call = asyncio.create_task(store.get(key()))
            await waiting.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
    [span] = spans.get_finished_spans()
    assert attribute(span, "error.type") == "CANCELLED"
    assert span.status.status_code == StatusCode.ERROR
