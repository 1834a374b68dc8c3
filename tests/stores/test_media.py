"""What every media store does, and what the folder does besides."""

import asyncio
from pathlib import Path

import pytest

from mesh.errors import InvalidArgument, NotFound, Unavailable
from stores.media.folder import FolderMediaStore
from stores.media.images import new_key
from stores.media.port import MediaStore


@pytest.fixture
def folder(tmp_path: Path) -> FolderMediaStore:
    return FolderMediaStore(tmp_path / "media", "https://feed.example/")


@pytest.fixture(params=["folder"])
def store(request: pytest.FixtureRequest) -> MediaStore:
    """Every adapter that is reachable, by its fixture's name; further ones join here."""
    adapter: MediaStore = request.getfixturevalue(request.param)
    return adapter


async def keys(store: MediaStore) -> set[str]:
    stored = store.keys()
    return {key async for key in stored}


async def test_an_object_comes_back_as_it_was_put(store: MediaStore) -> None:
    key = new_key(".png")
    await store.put(key, b"\x00picture", "image/png")
    assert await store.get(key) == (b"\x00picture", "image/png")
    assert key in await keys(store)


async def test_putting_again_replaces(store: MediaStore) -> None:
    key = new_key(".mp4")
    await store.put(key, b"old", "video/mp4")
    await store.put(key, b"new", "video/mp4")
    assert await store.get(key) == (b"new", "video/mp4")


async def test_a_deleted_object_is_not_found_and_the_others_stay(store: MediaStore) -> None:
    gone, kept = new_key(".jpg"), new_key(".jpg")
    for key in (gone, kept):
        await store.put(key, b"same picture", "image/jpeg")
    await store.delete([gone, new_key(".jpg")])
    with pytest.raises(NotFound):
        await store.get(gone)
    assert await store.get(kept) == (b"same picture", "image/jpeg")
    assert gone not in await keys(store)


async def test_an_unknown_key_is_not_found(store: MediaStore) -> None:
    with pytest.raises(NotFound):
        await store.get(new_key(".jpg"))


async def test_puts_at_once_do_not_mix(store: MediaStore) -> None:
    key = new_key(".webp")
    bodies = [bytes([i]) * 100_000 for i in range(8)]
    await asyncio.gather(*(store.put(key, body, "image/webp") for body in bodies))
    data, _ = await store.get(key)
    assert data in bodies


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
        await folder.put(new_key(".png"), b"", "text/html")


async def test_an_interrupted_write_leaves_no_object(
    folder: FolderMediaStore, tmp_path: Path
) -> None:
    key = new_key(".png")
    await folder.put(key, b"whole", "image/png")
    (tmp_path / "media" / key[:2] / ".put-xyz").write_bytes(b"half")
    assert await keys(folder) == {key}


async def test_objects_outlive_the_store(folder: FolderMediaStore, tmp_path: Path) -> None:
    key = new_key(".png")
    await folder.put(key, b"picture", "image/png")
    again = FolderMediaStore(tmp_path / "media", "http://elsewhere")
    assert await again.get(key) == (b"picture", "image/png")


async def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "media").write_text("a file where the folder should be")
    store = FolderMediaStore(tmp_path / "media", "http://feed.example")
    with pytest.raises(Unavailable):
        await store.put(new_key(".png"), b"picture", "image/png")
