"""Smaller copies of a picture, and the blur that stands for it while it loads.

`python -m app.images.thumbnails` is the child that makes those of a large one: it reads the picture and prints one line
of JSON, `{blurhash, copies: [[width, height, length]]}` or `{refused}`, and the copies' bytes behind it.
"""

# Pillow's types mention numpy, which is not here.
# pyright: reportUnknownMemberType=false

import asyncio
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import blurhash
from PIL import Image, ImageOps

from app.images import child
from app.images.inspect import UnreadableImage, inspect

WIDTHS = (256, 512, 1024)
MIME_TYPE = "image/webp"
RASTER_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})

# Most drawn pictures are smaller. Beyond, a child's start (0.1 s) is the lesser part of the work, while its memory (up
# to half a gigabyte for what a person may send) would stay with the service.
THREAD_PIXELS = 4 * 1024**2

_QUALITY = 80
# libwebp's second fastest way: its default takes twice as long for files as large.
_EFFORT = 2
_MAX_EDGE = 16383  # of a WebP
_BLUR_EDGE = 32
_BLUR_COMPONENTS = (4, 3)

# One picture at a time, so that a burst of them leaves the other cores to the streams.
_pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="thumbnails")


@dataclass(frozen=True)
class Copy:
    """One WebP; `width` and `height` are pixels of the picture as it is shown."""

    width: int
    height: int
    data: bytes


@dataclass(frozen=True)
class Copies:
    """`copies` smallest first."""

    copies: Sequence[Copy]
    blurhash: str


async def make_copies(data: bytes) -> Copies:
    """Copies of the `WIDTHS` that the picture reaches, of its first frame, made off the event loop.

    Raises UnreadableImage.
    """
    made = await asyncio.get_running_loop().run_in_executor(_pool, _make_here, data)
    return made or _read(await child.run("app.images.thumbnails", given=data, at_once=1))


def _make_here(data: bytes) -> Copies | None:
    """None for a picture that a child must decode."""
    facts = inspect(data)
    return _make_copies(data) if facts.width * facts.height <= THREAD_PIXELS else None


def _read(told: bytes) -> Copies:
    head, _, rest = told.partition(b"\n")
    facts = json.loads(head)
    if "refused" in facts:
        raise UnreadableImage(facts["refused"])
    copies: list[Copy] = []
    for width, height, length in facts["copies"]:
        copies.append(Copy(width, height, rest[:length]))
        rest = rest[length:]
    return Copies(copies, facts["blurhash"])


def main() -> None:
    child.bind(max_file_bytes=0)
    copies: Sequence[Copy] = ()
    try:
        made = _make_copies(sys.stdin.buffer.read())
    except UnreadableImage as error:
        told: dict[str, Any] = {"refused": str(error)}
    else:
        copies = made.copies
        sizes = [(copy.width, copy.height, len(copy.data)) for copy in copies]
        told = {"blurhash": made.blurhash, "copies": sizes}
    sys.stdout.buffer.writelines([json.dumps(told).encode(), b"\n", *(copy.data for copy in copies)])


def _make_copies(data: bytes) -> Copies:
    try:
        with Image.open(BytesIO(data), formats=["PNG", "JPEG", "WEBP", "GIF"]) as original:
            return _scale(original)
    except Exception as error:
        # Broken pixels make Pillow raise errors of a dozen kinds.
        raise UnreadableImage(f"The picture cannot be decoded: {error}.") from error


def _scale(original: Image.Image) -> Copies:
    # A JPEG is decoded at a half, a quarter or an eighth where no edge falls below the widest copy.
    original.draft(None, (WIDTHS[-1], WIDTHS[-1]))
    # A profile describes the colours that are kept; those of CMYK and grey pictures are not.
    profile = original.info.get("icc_profile") if original.mode in ("RGB", "RGBA", "P") else None
    image = _in_rgb(original)
    ImageOps.exif_transpose(image, in_place=True)
    copies: list[Copy] = []
    for width in reversed(WIDTHS):
        height = max(1, round(image.height * width / image.width))
        if width <= image.width and height <= _MAX_EDGE:
            image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
            buffer = BytesIO()
            image.save(buffer, "WEBP", quality=_QUALITY, method=_EFFORT, icc_profile=profile)
            copies.append(Copy(width, height, buffer.getvalue()))
    return Copies(copies[::-1], _blur(image))


def _in_rgb(image: Image.Image) -> Image.Image:
    """RGBA where the picture has transparency."""
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8 where it should scale them.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _blur(image: Image.Image) -> str:
    """A BlurHash (blurha.sh); what is transparent counts as white."""
    small = image.copy()
    small.thumbnail((_BLUR_EDGE, _BLUR_EDGE))
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    pixels, stride = small.tobytes(), 3 * small.width
    rows = [[pixels[at : at + 3] for at in range(row, row + stride, 3)] for row in range(0, len(pixels), stride)]
    return cast(Any, blurhash).encode(rows, *_BLUR_COMPONENTS)


if __name__ == "__main__":
    main()
