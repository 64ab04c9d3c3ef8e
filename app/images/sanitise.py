"""Strangers' pictures made harmless: decoded whole and written anew, by a child process with bounds of its own.

`python -m app.images.sanitise SOURCE TARGET MAX_BYTES` is that child. It prints one line of JSON: the facts of
`Cleaned`, or `{refused, too_large}`.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import reduce
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image, ImageChops, ImageCms
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.images import child
from app.images.inspect import ImageFacts, UnreadableImage, inspect

MAX_EDGE = 16_384
# A camera writes one scan, a progressive file about ten; each of thousands would cost a pass over all pixels.
MAX_SCANS = 100

AT_ONCE = 2

Mask = Literal["alpha", "black_and_white"]


@dataclass(frozen=True)
class Cleaned:
    """The new file; `mask` is what it could serve as, if any; `sha256` is lower-case hex."""

    mime_type: str
    extension: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    mask: Mask | None


class TooLargeWhenCleaned(UnreadableImage):
    """The picture is a good one, but its new file would exceed the limit."""


async def clean(source: Path, target: Path, *, max_bytes: int) -> Cleaned:
    """Write the picture in `source` anew to `target`, upright and without anything but its pixels.

    Both paths are absolute. Raises UnreadableImage for what is no whole, still PNG, JPEG or WebP within the bounds.
    """
    told = await child.run("app.images.sanitise", str(source), str(target), str(max_bytes), at_once=AT_ONCE)
    facts = json.loads(told)
    if "refused" in facts:
        raise (TooLargeWhenCleaned if facts["too_large"] else UnreadableImage)(facts["refused"])
    return Cleaned(**facts)


def main() -> None:
    source, target, max_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    child.bind(max_bytes)
    try:
        told = asdict(_sanitise(source, target, max_bytes))
    except UnreadableImage as error:
        told = {"refused": str(error), "too_large": isinstance(error, TooLargeWhenCleaned)}
    except MemoryError:
        told = {"refused": "The picture takes more memory to decode than it may.", "too_large": False}
    except Exception:
        # Broken pixels make Pillow raise errors of a dozen kinds.
        told = {"refused": "The picture cannot be decoded: its data are broken.", "too_large": False}
    json.dump(told, sys.stdout)


def _sanitise(source: Path, target: Path, max_bytes: int) -> Cleaned:
    data = source.read_bytes()
    facts = _inspect(data)
    name, reader, options = _KINDS[facts.extension]
    image = reader(BytesIO(data))
    if getattr(image, "is_animated", False):
        raise UnreadableImage("The picture is animated; send a still one.")
    image.load()
    turn = _turn_of(image)
    profile = cast(bytes | None, image.info.get("icc_profile"))
    image = _with_usual_mode(_to_srgb(image, profile))
    if turn is not None:
        image = image.transpose(turn)
    # Encoders take comments, profiles and resolutions over from here.
    image.info = {}
    # A JPEG whose pixels stand where they stood loses nothing under its own tables.
    keep = {"quality": "keep"} if isinstance(image, JpegImageFile) else {}
    _write(image, target, max_bytes, name, options | keep)
    cleaned = target.read_bytes()
    sha256 = hashlib.sha256(cleaned).hexdigest()
    return Cleaned(facts.mime_type, facts.extension, *image.size, len(cleaned), sha256, _mask_of(image))


def _inspect(data: bytes) -> ImageFacts:
    """What the header tells, before a pixel is decoded."""
    facts = inspect(data)
    if facts.extension not in _KINDS:
        raise UnreadableImage("The picture is neither PNG, JPEG nor WebP.")
    if max(facts.width, facts.height) > MAX_EDGE:
        raise UnreadableImage(
            f"The picture measures {facts.width}x{facts.height}; at most {MAX_EDGE} a side are taken."
        )
    if facts.extension == "jpg" and _scans_of(data) > MAX_SCANS:
        raise UnreadableImage(f"The JPEG has more than {MAX_SCANS} scans.")
    return facts


def _scans_of(data: bytes) -> int:
    """Scans before the end of the picture; segments are skipped by their lengths, so a thumbnail's do not count."""
    position, scans = 2, 0
    while scans <= MAX_SCANS and (marker := _MARKER.search(data, position)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return scans


# In entropy-coded data 0xFF is followed by 0 or a restart marker.
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


def _turn_of(image: Image.Image) -> Transpose | None:
    """What sets the picture upright, by EXIF's orientation; EXIF that cannot be read says nothing."""
    with suppress(Exception):
        return _TURNS.get(image.getexif().get(0x0112, 1))
    return None


_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as they were meant; a profile that cannot be used, or is not of these colours, is left out."""
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


def _with_usual_mode(image: Image.Image) -> Image.Image:
    """As L, RGB or RGBA, in 8 bits."""
    if image.mode == "I;16":
        return cast(Any, image).point(_high_byte).convert("L")  # without it all above 255 would be white
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
        raise TooLargeWhenCleaned(f"Written anew, the picture would have more than {max_bytes} bytes.") from None


_KINDS: dict[str, tuple[str, Callable[[BytesIO], Image.Image], dict[str, Any]]] = {
    "png": ("PNG", PngImageFile, {"compress_level": 1}),
    "jpg": ("JPEG", JpegImageFile, {"quality": 95, "subsampling": 0}),
    # The fastest method fails for large pictures, and the default one takes twice as long.
    "webp": ("WEBP", WebPImageFile, {"quality": 95, "exact": True, "method": 2}),
}


def _mask_of(image: Image.Image) -> Mask | None:
    """Any pixel that is not opaque, or else 99 % within 16 of black or white, and some of each."""
    if image.mode == "RGBA":
        lowest, _ = cast(tuple[int, int], image.getchannel("A").getextrema())
        if lowest < 255:
            return "alpha"
    histogram = image.histogram()[:768]
    if not all(
        _is_two_toned(band, band) for band in (histogram[at : at + 256] for at in range(0, len(histogram), 256))
    ):
        return None
    # Each band for itself is; white and black are where all bands agree.
    bands = image.split()[:3]
    brightest, darkest = reduce(ImageChops.lighter, bands), reduce(ImageChops.darker, bands)
    return "black_and_white" if _is_two_toned(brightest.histogram(), darkest.histogram()) else None


def _is_two_toned(brightest: list[int], darkest: list[int]) -> bool:
    black, white = sum(brightest[:17]), sum(darkest[-17:])
    return bool(black and white) and black + white >= 0.99 * sum(darkest)


if __name__ == "__main__":
    main()
