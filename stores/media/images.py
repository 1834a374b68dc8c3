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
    suffix = _video_suffix(data)
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


def new_key(suffix: str) -> str:
    """A key for one upload, as `ab/abcdef….jpg`.

    Random rather than a hash of the content: two posts with the same image have an object each,
    so that deleting one leaves the other's; and nobody can guess a key.
    """
    name = secrets.token_hex(16)
    return f"{name[:2]}/{name}{suffix}"


def _video_suffix(data: bytes) -> str | None:
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
