"""Thumbnails of an image, and the BlurHash that a page shows while the image loads.

`python -m app.images.thumbnails` is the child process for large images: it reads the image from standard input and
prints one line of JSON, `{blurhash, thumbnails: [[width, height, length]]}` or `{rejected}`, then the WebP files.
"""

# Pillow's types mention numpy, which is not here.
# pyright: reportUnknownMemberType=false

import asyncio
import json
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from typing import Any, cast

import blurhash
from PIL import Image, ImageOps

from app.images import child
from app.images.copies import WIDTHS, Thumbnail, Thumbnails
from app.images.inspect import UnreadableImage, inspect

# Most generated images are smaller and are decoded in a thread. Larger ones go to a child: starting it takes 0.1 s, and
# the memory it needs (up to half a gigabyte for an upload) is returned to the system when it ends.
THREAD_PIXELS = 4 * 1024**2

# Why these, and what they cost: docs/decisions/0021-thumbnails.md.
_QUALITY, _METHOD = 75, 0
_MAX_EDGE = 16383  # of a WebP
# Its encoder is written in Python, so it makes the event loop wait: four times as long with twice the edge.
_BLURHASH_EDGE = 16
_BLURHASH_COMPONENTS = (4, 3)

# One image at a time, in the thread or in a child, so that a burst of them leaves the other cores to the runs.
_AT_ONCE = 1
_pool = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="thumbnails")


async def make_thumbnails(data: bytes) -> Thumbnails:
    """Thumbnails of the first frame in those `WIDTHS` that the image reaches, made off the event loop.

    Raises UnreadableImage.
    """
    async with child.slots("thumbnails", _AT_ONCE):
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(_pool, _decode_in_thread, data)
        if image is None:
            return _parse(await child.run("app.images.thumbnails", stdin=data, concurrency=_AT_ONCE))
        # Frees the bytes before the encoder needs one and a half times the memory of the pixels.
        del data
        return await loop.run_in_executor(_pool, _scale, image)


def _decode_in_thread(data: bytes) -> Image.Image | None:
    """None for an image that a child must decode."""
    facts = inspect(data)
    return _decode(data) if facts.width * facts.height <= THREAD_PIXELS else None


def _parse(output: bytes) -> Thumbnails:
    head, _, rest = output.partition(b"\n")
    facts = json.loads(head)
    if "rejected" in facts:
        raise UnreadableImage(facts["rejected"])
    images: list[Thumbnail] = []
    for width, height, length in facts["thumbnails"]:
        images.append(Thumbnail(width, height, rest[:length]))
        rest = rest[length:]
    return Thumbnails(images, facts["blurhash"])


def main() -> None:
    child.limit_process(max_file_bytes=0)
    images: Sequence[Thumbnail] = ()
    try:
        made = _scale(_decode(sys.stdin.buffer.read()))
    except UnreadableImage as error:
        head: dict[str, Any] = {"rejected": str(error)}
    else:
        images = made.images
        sizes = [(image.width, image.height, len(image.data)) for image in images]
        head = {"blurhash": made.blurhash, "thumbnails": sizes}
    sys.stdout.buffer.writelines([json.dumps(head).encode(), b"\n", *(image.data for image in images)])


@contextmanager
def _rejecting() -> Generator[None]:
    try:
        yield
    except Exception as error:
        # Corrupt data makes Pillow raise a dozen kinds of errors.
        raise UnreadableImage(f"The image cannot be decoded: {error}.") from error


def _decode(data: bytes) -> Image.Image:
    """Upright, in RGB or RGBA, without the data."""
    formats = ["PNG", "JPEG", "WEBP", "GIF"]
    # The image keeps its file, which keeps the data until it is closed.
    with _rejecting(), BytesIO(data) as file, Image.open(file, formats=formats) as original:
        # A JPEG is decoded at a half, a quarter or an eighth, while no edge gets shorter than the widest thumbnail.
        original.draft(None, (WIDTHS[-1], WIDTHS[-1]))
        image = in_rgb(original)
        if original.mode not in ("RGB", "RGBA", "P"):
            # CMYK and grey images were converted, so their profiles no longer apply.
            image.info.pop("icc_profile", None)
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
        return image


@_rejecting()
def _scale(image: Image.Image) -> Thumbnails:
    profile = image.info.get("icc_profile")
    thumbnails: list[Thumbnail] = []
    for width in reversed(WIDTHS):
        height = max(1, round(image.height * width / image.width))
        if width <= image.width and height <= _MAX_EDGE:
            image = _reduce(image, width, height)
            buffer = BytesIO()
            image.save(buffer, "WEBP", quality=_QUALITY, method=_METHOD, icc_profile=profile)
            thumbnails.append(Thumbnail(width, height, buffer.getvalue()))
    return Thumbnails(thumbnails[::-1], _blurhash_of(image))


def _reduce(image: Image.Image, width: int, height: int) -> Image.Image:
    """To a whole fraction by averaging pixels, which takes a tenth of the time of a filter and looks alike."""
    if (width, height) == image.size:
        return image  # `reduce(1)` would copy all pixels
    factor = image.width // width
    if (factor * width, factor * height) == image.size:
        return image.reduce(factor)
    return image.resize((width, height), Image.Resampling.HAMMING, reducing_gap=2.0)


def in_rgb(image: Image.Image) -> Image.Image:
    """RGB, or RGBA if the image has transparency."""
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8 instead of scaling them.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _blurhash_of(image: Image.Image) -> str:
    """See blurha.sh; transparent pixels count as white."""
    small = image.copy()
    small.thumbnail((_BLURHASH_EDGE, _BLURHASH_EDGE), Image.Resampling.BOX)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    pixels, stride = small.tobytes(), 3 * small.width
    rows = [[pixels[at : at + 3] for at in range(row, row + stride, 3)] for row in range(0, len(pixels), stride)]
    return cast(Any, blurhash).encode(rows, *_BLURHASH_COMPONENTS)


if __name__ == "__main__":
    main()
