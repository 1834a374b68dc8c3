"""What every media store does, and what the folder does besides."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.errors import InvalidArgument, NotFound, Unavailable
from stores.media.folder import FolderMediaStore
from stores.media.images import new_key
from stores.media.port import MediaStore
from tests.fixtures.buckets import fresh_bucket, opened
from tests.fixtures.stack import Stack

POST_ID = 857234987234082816


@pytest.fixture
def folder(tmp_path: Path) -> FolderMediaStore:
    return FolderMediaStore(tmp_path / "media", "https://feed.example/")


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.stack)])
async def store(
    request: pytest.FixtureRequest, folder: FolderMediaStore
) -> AsyncIterator[MediaStore]:
    """Every adapter, by its name."""
    if request.param == "folder":
        yield folder
        return
    stack: Stack = request.getfixturevalue("stack")
    async with fresh_bucket(await stack.url("minio")) as url, opened(url) as s3:
        yield s3


async def keys(store: MediaStore) -> set[str]:
    stored = store.keys()
    return {key async for key in stored}


async def test_an_object_comes_back_as_it_was_put(store: MediaStore) -> None:
    key = new_key(POST_ID, ".png")
    await store.put(key, b"\x00picture", "image/png")
    assert await store.get(key) == (b"\x00picture", "image/png")
    assert key in await keys(store)


async def test_putting_again_replaces(store: MediaStore) -> None:
    key = new_key(POST_ID, ".mp4")
    await store.put(key, b"old", "video/mp4")
    await store.put(key, b"new", "video/mp4")
    assert await store.get(key) == (b"new", "video/mp4")


async def test_a_deleted_object_is_not_found_and_the_others_stay(store: MediaStore) -> None:
    gone, kept = new_key(POST_ID, ".jpg"), new_key(POST_ID, ".jpg")
    for key in (gone, kept):
        await store.put(key, b"same picture", "image/jpeg")
    await store.delete([gone, new_key(POST_ID, ".jpg")])
    with pytest.raises(NotFound):
        await store.get(gone)
    assert await store.get(kept) == (b"same picture", "image/jpeg")
    assert gone not in await keys(store)


async def test_an_unknown_key_is_not_found(store: MediaStore) -> None:
    with pytest.raises(NotFound):
        await store.get(new_key(POST_ID, ".jpg"))


async def test_puts_at_once_do_not_mix(store: MediaStore) -> None:
    key = new_key(POST_ID, ".webp")
    bodies = [bytes([i]) * 100_000 for i in range(8)]
    await asyncio.gather(*(store.put(key, body, "image/webp") for body in bodies))
    data, _ = await store.get(key)
    assert data in bodies


async def test_only_objects_that_are_old_enough_are_listed(store: MediaStore) -> None:
    key = new_key(POST_ID, ".png")
    await store.put(key, b"new", "image/png")
    assert {each async for each in store.keys(older_than_s=3600)} == set()
    assert {each async for each in store.keys(older_than_s=-3600)} == {key}


@pytest.mark.parametrize("key", ["ab/abcd", "uploads/x.png", ""])
async def test_what_is_no_key_is_not_stored(store: MediaStore, key: str) -> None:
    with pytest.raises(InvalidArgument):
        await store.put(key, b"picture", "image/png")
    with pytest.raises(NotFound):
        await store.get(key)
    await store.delete([key])
    assert await keys(store) == set()


async def test_an_object_may_be_large(store: MediaStore) -> None:
    key, data = new_key(POST_ID, ".mp4"), bytes(range(256)) * 48_000
    await store.put(key, data, "video/mp4")
    assert await store.get(key) == (data, "video/mp4")


async def test_the_url_leads_to_the_gateway(folder: FolderMediaStore) -> None:
    assert folder.url("ab/abcd.jpg") == "https://feed.example/media/ab/abcd.jpg"


@pytest.mark.parametrize(
    "key",
    [
        "../secret.jpg",
        "ab/../../secret.jpg",
        "/etc/passwd",
        "ab/abcd",
        "ab/cd0123456789abcdef.jpg",
        "ab/ab0123456789abcdef.jpg\n",
        "ab/ab0123456789abcdef.svg",
        "ab\\ab0123456789abcdef.jpg",
        "ab/ab0123456789abcdef.jpg/x",
        "",
        "\x00",
    ],
)
async def test_what_is_no_key_never_reaches_the_disk(
    folder: FolderMediaStore, tmp_path: Path, key: str
) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    with pytest.raises(NotFound):
        await folder.get(key)
    with pytest.raises(InvalidArgument):
        await folder.put(key, b"overwritten", "image/jpeg")
    await folder.delete([key])
    assert secret.read_bytes() == b"secret"
    assert list(tmp_path.iterdir()) == [secret]


async def test_another_content_type_than_the_suffix_says_is_refused(
    folder: FolderMediaStore,
) -> None:
    with pytest.raises(InvalidArgument):
        await folder.put(new_key(POST_ID, ".png"), b"", "text/html")


async def test_an_interrupted_write_leaves_no_object(
    folder: FolderMediaStore, tmp_path: Path
) -> None:
    key = new_key(POST_ID, ".png")
    await folder.put(key, b"whole", "image/png")
    (tmp_path / "media" / key[:2] / ".put-xyz").write_bytes(b"half")
    assert await keys(folder) == {key}


async def test_objects_outlive_the_store(folder: FolderMediaStore, tmp_path: Path) -> None:
    key = new_key(POST_ID, ".png")
    await folder.put(key, b"picture", "image/png")
    again = FolderMediaStore(tmp_path / "media", "http://elsewhere")
    assert await again.get(key) == (b"picture", "image/png")


async def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "media").write_text("a file where the folder should be")
    store = FolderMediaStore(tmp_path / "media", "http://feed.example")
    with pytest.raises(Unavailable):
        await store.put(new_key(POST_ID, ".png"), b"picture", "image/png")
