"""The child process of `clean`: `python -m app.images.sanitise SOURCE TARGET MAX_BYTES`.

It prints one line of JSON: the fields of `Cleaned`, or `{rejected, over_limit}`.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import reduce
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageChops, ImageCms
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.images import child
from app.images.cleaning import Cleaned, Mask, TooLargeWhenCleaned
from app.images.inspect import ImageFacts, UnreadableImage, inspect

MAX_EDGE = 16_384
# A camera writes one scan, a progressive encoder about ten; each scan costs a pass over all pixels.
MAX_SCANS = 100


def main() -> None:
    source, target, max_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    child.limit_process(max_bytes)
    try:
        result = asdict(_sanitise(source, target, max_bytes))
    except UnreadableImage as error:
        result = {"rejected": str(error), "over_limit": isinstance(error, TooLargeWhenCleaned)}
    except MemoryError:
        result = {"rejected": "Decoding the image needs more memory than allowed.", "over_limit": False}
    except Exception:
        # Corrupt data makes Pillow raise a dozen kinds of errors.
        result = {"rejected": "The image cannot be decoded: its data is corrupt.", "over_limit": False}
    json.dump(result, sys.stdout)


def _sanitise(source: Path, target: Path, max_bytes: int) -> Cleaned:
    data = source.read_bytes()
    facts = _inspect(data)
    name, reader, options = _KINDS[facts.extension]
    image = reader(BytesIO(data))
    if getattr(image, "is_animated", False):
        raise UnreadableImage("The image is animated; send a still one.")
    image.load()
    rotation = _rotation_of(image)
    profile = cast(bytes | None, image.info.get("icc_profile"))
    image = _in_common_mode(_to_srgb(image, profile))
    if rotation is not None:
        image = image.transpose(rotation)
    # Encoders copy comments, profiles and resolutions from `info`.
    image.info = {}
    # A JPEG that was not changed is encoded with its own quantisation tables, which loses nothing.
    keep = {"quality": "keep"} if isinstance(image, JpegImageFile) else {}
    _write(image, target, max_bytes, name, options | keep)
    cleaned = target.read_bytes()
    sha256 = hashlib.sha256(cleaned).hexdigest()
    return Cleaned(facts.mime_type, facts.extension, *image.size, len(cleaned), sha256, _mask_of(image))


def _inspect(data: bytes) -> ImageFacts:
    """The limits that can be checked before a pixel is decoded."""
    facts = inspect(data)
    if facts.extension not in _KINDS:
        raise UnreadableImage("The image is neither PNG, JPEG nor WebP.")
    if max(facts.width, facts.height) > MAX_EDGE:
        raise UnreadableImage(
            f"The image has {facts.width}x{facts.height} pixels; at most {MAX_EDGE} per side are accepted."
        )
    if facts.extension == "jpg" and _scans_of(data) > MAX_SCANS:
        raise UnreadableImage(f"The JPEG has more than {MAX_SCANS} scans.")
    return facts


def _scans_of(data: bytes) -> int:
    """Scans of the image; segments are skipped by their lengths, so those of an embedded thumbnail do not count."""
    position, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, position)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


# In entropy-coded data 0xFF is followed by 0 or a restart marker.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


def _rotation_of(image: Image.Image) -> Transpose | None:
    """The transposition that EXIF's orientation asks for; unreadable EXIF is ignored."""
    with suppress(Exception):
        return _ROTATIONS.get(image.getexif().get(0x0112, 1))
    return None


_ROTATIONS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB; a profile that is invalid or belongs to other colours is ignored."""
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    output = "RGB" if image.mode == "CMYK" else image.mode
    try:
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        srgb = cast(Any, ImageCms).createProfile("sRGB")
        transform = ImageCms.buildTransform(given, srgb, image.mode, output)
    except (ImageCms.PyCMSError, OSError):
        return image
    return transform.apply_in_place(image) if output == image.mode else transform.apply(image)


def _in_common_mode(image: Image.Image) -> Image.Image:
    """L, RGB or RGBA, 8 bits per channel."""
    if image.mode == "I;16":
        return (
            cast(Any, image).point(_high_byte).convert("L")
        )  # `convert` alone would clip everything above 255 to white
    wanted = "RGBA" if image.has_transparency_data else "L" if image.mode in ("1", "L", "LA") else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _high_byte(value: Any) -> Any:
    return value / 256


def _write(image: Image.Image, target: Path, max_bytes: int, name: str, options: dict[str, Any]) -> None:
    try:
        with target.open("wb") as file:
            image.save(file, name, **options)
    except OSError:
        if target.stat().st_size < max_bytes:
            raise
        raise TooLargeWhenCleaned(f"Encoded again, the image would have more than {max_bytes} bytes.") from None


_KINDS: dict[str, tuple[str, Callable[[BytesIO], Image.Image], dict[str, Any]]] = {
    "png": ("PNG", PngImageFile, {"compress_level": 1}),
    "jpg": ("JPEG", JpegImageFile, {"quality": 95, "subsampling": 0}),
    # Method 0 fails for large images, and the default takes twice as long.
    "webp": ("WEBP", WebPImageFile, {"quality": 95, "exact": True, "method": 2}),
}


def _mask_of(image: Image.Image) -> Mask | None:
    """`alpha` if any pixel is not opaque; `black_and_white` if 99 % are within 16 of black or white, and both occur."""
    if image.mode == "RGBA":
        lowest, _ = cast(tuple[int, int], image.getchannel("A").getextrema())
        if lowest < 255:
            return "alpha"
    histogram = image.histogram()[:768]
    if not all(
        _is_two_toned(band, band) for band in (histogram[at : at + 256] for at in range(0, len(histogram), 256))
    ):
        return None
    # Each band is two-toned; the image is, if the bands are black and white at the same pixels.
    bands = image.split()[:3]
    brightest, darkest = reduce(ImageChops.lighter, bands), reduce(ImageChops.darker, bands)
    return "black_and_white" if _is_two_toned(brightest.histogram(), darkest.histogram()) else None


def _is_two_toned(brightest: list[int], darkest: list[int]) -> bool:
    black, white = sum(brightest[:17]), sum(darkest[-17:])
    return bool(black and white) and black + white >= 0.99 * sum(darkest)


if __name__ == "__main__":
    main()
