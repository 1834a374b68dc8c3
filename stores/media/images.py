"""What becomes of an uploaded file before it is stored: known types only, nothing hidden in it.

Images are decoded and encoded anew, so that neither metadata (places, cameras, names) nor anything
that only pretends to be an image gets through. Videos pass as they are, by what they begin with.
"""

import io
import re
import secrets
from dataclasses import dataclass

from PIL import Image, ImageCms, ImageOps

from mesh.errors import InvalidArgument

CONTENT_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
}
# The two digits that a key begins with spread the objects over folders.
_KEY = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{14,62}(\.[a-z0-9]{2,4})")
_KEY_OF_POST = re.compile(r"../[0-9a-f]{32}([0-9a-f]{16})\..*")
MAX_PIXELS = 40_000_000
MAX_EDGE = 2048
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
_QUALITY = {"JPEG": 85, "WEBP": 85}
_READABLE = ("JPEG", "PNG", "WEBP", "GIF")
# Major brands of ISO base media files that are videos; HEIC and AVIF images have others.
_MP4_BRANDS = re.compile(rb"iso[m2-9]|mp4[12]|avc1|M4V |MSNV|dash")
_EBML, _DOCTYPE_WEBM = b"\x1a\x45\xdf\xa3", b"\x42\x82\x84webm"


@dataclass(frozen=True, slots=True)
class PreparedMedia:
    """A file as it is stored; `suffix` has its dot. Videos have no size: 0 x 0."""

    data: bytes
    content_type: str
    width: int
    height: int
    suffix: str


def prepare(data: bytes, declared_type: str) -> PreparedMedia:
    """Checks an upload by its content and brings it into the form that is stored.

    JPEG, PNG, WebP and GIF (its first frame) become upright images of at most 2048 pixels an edge,
    in sRGB, without metadata: JPEG stays JPEG, what has transparency becomes PNG, the rest WebP.
    MP4, QuickTime and WebM videos stay as they are. Blocking: up to a second.

    Args:
        data: The file.
        declared_type: What the client calls it; only repeated to it when the file is refused.

    Raises:
        InvalidArgument: Of another type, damaged, or above 40 million pixels; field "media".
    """
    suffix = video_suffix(data)
    if suffix:
        return PreparedMedia(data, CONTENT_TYPES[suffix], 0, 0, suffix)
    try:
        with Image.open(io.BytesIO(data), formats=_READABLE) as image:
            return _reencode(image)
    except InvalidArgument:
        raise
    except Image.DecompressionBombError:
        raise _refused(f"has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        # Decoders of broken files raise nearly anything: OSError, SyntaxError, struct.error, ...
        known = "JPEG, PNG, WebP, GIF, MP4, QuickTime, WebM"
        what = f"declared as {declared_type[:100]!r}"
        raise _refused(f"is damaged or none of {known} ({what})") from error


def new_key(post_id: int, suffix: str, name: str = "") -> str:
    """A key for one media object of a post, as `ab/abcdef….jpg`.

    Random rather than a hash of the content: two posts with the same image have an object each,
    so that deleting one leaves the other's; and nobody can guess a key. It ends with the post's
    id, so that whoever finds an object can ask whether its post is there.

    Args:
        post_id: Whose it is.
        suffix: Of `CONTENT_TYPES`.
        name: 32 hex digits that cannot be guessed, where they must not be random.
    """
    name = name or secrets.token_hex(16)
    return f"{name[:2]}/{name}{post_id:016x}{suffix}"


def content_type_of(key: str) -> str | None:
    """The type that the key's suffix tells; None when it is no key at all."""
    match = _KEY.fullmatch(key)
    return CONTENT_TYPES.get(match[2]) if match else None


def check_key(key: str, content_type: str) -> None:
    """Raises `InvalidArgument` on a key that is none, or whose suffix is of another type."""
    known = content_type_of(key)
    if known is None:
        raise InvalidArgument("not the key of a media object", fields={"key": repr(key)[:100]})
    if known != content_type:
        raise InvalidArgument(
            "the key's suffix is of another content type",
            fields={"content_type": f"is {content_type[:100]}, {known} was expected"},
        )


def post_of(key: str) -> int | None:
    """The post that the object was stored for; None when the key does not say."""
    match = _KEY_OF_POST.fullmatch(key) if content_type_of(key) else None
    return int(match[1], 16) if match else None


def video_suffix(data: bytes) -> str | None:
    """The suffix of a video, by its first 64 bytes; None when they are no video's."""
    if data[4:8] == b"ftyp" and len(data) >= 16:
        if data[8:12] == b"qt  ":
            return ".mov"
        return ".mp4" if _MP4_BRANDS.fullmatch(data[8:12]) else None
    if data.startswith(_EBML) and _DOCTYPE_WEBM in data[:64]:
        return ".webm"
    return None


def _reencode(image: Image.Image) -> PreparedMedia:
    if image.width * image.height > MAX_PIXELS:
        raise _refused(f"has more than {MAX_PIXELS:,} pixels")
    is_jpeg = image.format in ("JPEG", "MPO")
    # A JPEG can be decoded at a fraction of its size, in a fraction of the time.
    image.draft(None, (MAX_EDGE, MAX_EDGE))
    image.load()
    upright = ImageOps.exif_transpose(image)
    upright = _in_srgb(upright)
    upright.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    name = "JPEG" if is_jpeg else "PNG" if upright.mode == "RGBA" else "WEBP"
    out = io.BytesIO()
    # A new image has no `info`, which the encoders would otherwise write as metadata.
    clean = Image.frombytes(upright.mode, upright.size, upright.tobytes())
    clean.save(out, name, quality=_QUALITY.get(name, -1), optimize=True)
    suffix = _SUFFIXES[name]
    return PreparedMedia(out.getvalue(), CONTENT_TYPES[suffix], *clean.size, suffix)


def _in_srgb(image: Image.Image) -> Image.Image:
    """As RGB, or RGBA where something is transparent; the profile's colours become sRGB's."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # 16 bits of grey; converting would clip them rather than scale them.
        image = image.point(lambda value: value / 256).convert("L")
    mode = "RGBA" if _is_transparent(image) else "RGB"
    if not profile or image.mode not in ("RGB", "CMYK"):
        return image.convert(mode)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):
        # A broken profile is no reason to refuse the picture.
        return image.convert(mode)
    return converted or image.convert(mode)


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    # The histogram of 256 levels: fewer than all pixels are at the last, opaque one.
    opaque = image.convert("RGBA").getchannel("A").histogram()[-1]
    return opaque < image.width * image.height


def _refused(reason: str) -> InvalidArgument:
    return InvalidArgument(f"the media file {reason}", fields={"media": reason})
