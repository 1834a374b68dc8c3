"""Uploads: what is accepted, what it becomes, and that nothing else gets through."""

import io
import random
import re
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from mesh.errors import InvalidArgument
from mesh.ids import MAX_ID
from stores.media.images import (
    CONTENT_TYPES,
    MAX_EDGE,
    PreparedMedia,
    content_type_of,
    new_key,
    post_of,
    prepare,
)

RED, BLUE = (220, 30, 30), (30, 30, 220)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF"]
GPS, ORIENTATION = 0x8825, 0x0112


def picture(width: int = 64, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width, height // 2))
    return image.convert(mode)


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def decoded(media: PreparedMedia) -> Image.Image:
    image = Image.open(io.BytesIO(media.data))
    image.load()
    assert image.size == (media.width, media.height)
    return image


def near(image: Image.Image, x: int, y: int, colour: tuple[int, int, int]) -> bool:
    pixel = np.array(image.convert("RGB"))[y, x]
    return bool(np.abs(pixel.astype(int) - colour).max() < 40)


@pytest.mark.parametrize(
    ("name", "mode", "becomes"),
    [
        ("JPEG", "RGB", "image/jpeg"),
        ("JPEG", "L", "image/jpeg"),
        ("JPEG", "CMYK", "image/jpeg"),
        ("PNG", "RGB", "image/webp"),
        ("PNG", "P", "image/webp"),
        ("PNG", "1", "image/webp"),
        ("PNG", "LA", "image/webp"),
        ("WEBP", "RGB", "image/webp"),
        ("GIF", "P", "image/webp"),
    ],
)
def test_an_image_keeps_its_size_and_picture(name: str, mode: str, becomes: str) -> None:
    media = prepare(encoded(picture(mode=mode), name), "whatever/declared")
    assert (media.content_type, media.width, media.height) == (becomes, 64, 40)
    image = decoded(media)
    if mode in ("RGB", "CMYK", "P"):
        assert near(image, 32, 5, RED)
        assert near(image, 32, 35, BLUE)


@pytest.mark.parametrize("name", ["PNG", "WEBP", "GIF"])
def test_transparency_stays(name: str) -> None:
    image = picture(mode="RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    media = prepare(encoded(image, name), "image/png")
    assert (media.content_type, media.suffix) == ("image/png", ".png")
    alpha = np.array(decoded(media).convert("RGBA"))[..., 3]
    assert alpha[5, 5] == 0
    assert alpha[35, 50] == 255


def test_16_bits_of_grey_are_scaled() -> None:
    grey = Image.fromarray(np.full((10, 10), 128 * 256, np.uint16))
    media = prepare(encoded(grey, "PNG"), "image/png")
    assert near(decoded(media), 5, 5, (128, 128, 128))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_places_and_other_metadata_are_gone(name: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 36.0)})
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "SecretCamera")
    special: dict[str, dict[str, object]] = {
        "PNG": {"pnginfo": text},
        "JPEG": {"comment": b"SecretCamera"},
        "WEBP": {},
    }
    upload = encoded(
        picture(), name, exif=exif.tobytes(), icc_profile=srgb_profile(), **special[name]
    )
    assert b"SecretCamera" in upload
    assert Image.open(io.BytesIO(upload)).getexif().get_ifd(GPS)
    media = prepare(upload, "image/jpeg")
    image = decoded(media)
    assert not image.getexif()
    assert not image.getexif().get_ifd(GPS)
    assert not {"exif", "icc_profile", "comment", "xmp", "Author"} & image.info.keys()
    assert b"SecretCamera" not in media.data


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_a_broken_colour_profile_does_no_harm() -> None:
    media = prepare(encoded(picture(), "JPEG", icc_profile=b"x" * 200), "image/jpeg")
    assert near(decoded(media), 32, 5, RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_comes_out_upright(orientation: int) -> None:
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    turned = picture()
    for turn in turns[orientation]:
        turned = turned.transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    media = prepare(encoded(turned, "JPEG", exif=exif.tobytes(), quality=95), "image/jpeg")
    assert (media.width, media.height) == (64, 40)
    assert near(decoded(media), 32, 5, RED)
    assert near(decoded(media), 32, 35, BLUE)


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_a_large_image_is_scaled_down_in_proportion(name: str) -> None:
    media = prepare(encoded(picture(5000, 2500), name), "image/png")
    assert (media.width, media.height) == (MAX_EDGE, MAX_EDGE // 2)


@pytest.mark.parametrize(("width", "height"), [(8000, 6000), (20_000, 20_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    bomb = encoded(Image.new("1", (width, height)), "PNG")
    with pytest.raises(InvalidArgument) as refused:
        prepare(bomb, "image/png")
    assert "40,000,000 pixels" in refused.value.fields["media"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_image_is_refused(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), name)
    with pytest.raises(InvalidArgument):
        prepare(whole[: len(whole) // 2], "image/png")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is a text file",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<?xml version='1.0'?><svg/>",
        b"<html><body>hello</body></html>",
        b"%PDF-1.7",
        b"\x89PNG\r\n\x1a\n" + b"text" * 100,
        b"\xff\xd8\xff\xe0" + b"text" * 100,
        b"GIF89a" + b"text" * 100,
        b"\x00\x00\x00\x18ftypheic" + bytes(100),
        b"\x00\x00\x00\x18ftypM4A " + bytes(100),
        b"\x1a\x45\xdf\xa3\x93\x42\x82\x88matroska" + bytes(100),
        b"MZ" + bytes(200),
    ],
)
def test_what_is_no_medium_is_refused_whatever_it_is_called(data: bytes) -> None:
    with pytest.raises(InvalidArgument) as refused:
        prepare(data, "image/png")
    assert refused.value.fields.keys() == {"media"}


@pytest.mark.parametrize(
    ("head", "content_type", "suffix"),
    [
        (b"\x00\x00\x00\x18ftypisom", "video/mp4", ".mp4"),
        (b"\x00\x00\x00\x18ftypmp42", "video/mp4", ".mp4"),
        (b"\x00\x00\x00\x14ftypqt  ", "video/quicktime", ".mov"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm", "video/webm", ".webm"),
    ],
)
def test_a_video_passes_as_it_is(head: bytes, content_type: str, suffix: str) -> None:
    data = head + bytes(range(256))
    assert prepare(data, "text/plain") == PreparedMedia(data, content_type, 0, 0, suffix)


@given(
    st.binary(max_size=300),
    st.sampled_from(
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"II*\x00",
            b"RIFF\x10\x00\x00\x00WEBP",
            b"GIF89a",
        ]
    ),
)
def test_random_bytes_raise_nothing_but_invalid_argument(data: bytes, magic: bytes) -> None:
    with pytest.raises(InvalidArgument):
        prepare(magic + data, "image/png")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_image_is_refused_or_comes_out_as_an_image(name: str, seed: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {} if name == "GIF" else {"exif": exif.tobytes(), "icc_profile": srgb_profile()}
    damaged = bytearray(encoded(picture(), name, **options))
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 12)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    with suppress(InvalidArgument):
        decoded(prepare(bytes(damaged), "image/png"))


def test_each_upload_has_a_key_of_its_own() -> None:
    keys = {new_key(7, ".jpg") for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"([0-9a-f]{2})/\1[0-9a-f]{30}0{15}7\.jpg", key) for key in keys)


@given(post_id=st.integers(1, MAX_ID), suffix=st.sampled_from(sorted(CONTENT_TYPES)))
def test_a_key_tells_its_type_and_its_post(post_id: int, suffix: str) -> None:
    key = new_key(post_id, suffix)
    assert content_type_of(key) == CONTENT_TYPES[suffix]
    assert post_of(key) == post_id


@pytest.mark.parametrize(
    "key", ["", "ab/ab0123456789abcdef.svg", "x/y.jpg", f"ab/cd{'0' * 46}.jpg"]
)
def test_what_is_no_key_tells_nothing(key: str) -> None:
    assert content_type_of(key) is None
    assert post_of(key) is None


def test_a_key_without_a_post_is_a_key_all_the_same() -> None:
    key = f"ab/ab{'0' * 30}.jpg"
    assert content_type_of(key) == "image/jpeg"
    assert post_of(key) is None
