"""Image type, size and completeness from the bytes alone, without decoding pixels."""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from app.images.formats import KINDS, MAX_PIXELS, UnreadableImage

THREADS = 4

# Not the default pool: images must not wait there behind DNS look-ups and file access.
pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="images")


@dataclass(frozen=True)
class ImageFacts:
    """`extension` has no dot; `width` and `height` are pixels, for SVG its user units rounded."""

    mime_type: str
    extension: str
    width: int
    height: int


@dataclass(frozen=True)
class Decoded:
    """Inspected bytes; `sha256` is lower-case hex."""

    data: bytes
    facts: ImageFacts
    sha256: str


async def facts_of(data: bytes) -> ImageFacts:
    """Inspect off the event loop; raises UnreadableImage."""
    return await asyncio.get_running_loop().run_in_executor(pool, inspect, data)


async def examine(data: bytes) -> Decoded:
    """Inspect and hash off the event loop; raises UnreadableImage."""
    return await asyncio.get_running_loop().run_in_executor(pool, _examine, data)


def inspect(data: bytes) -> ImageFacts:
    """The image's facts; raises UnreadableImage for unknown types, truncated bytes and decompression bombs."""
    for kind in KINDS:
        if kind.matches(data):
            width, height = kind.measure(data)
            if width < 1 or height < 1 or width * height > MAX_PIXELS:
                raise UnreadableImage(f"The image has {width}x{height} pixels; at most {MAX_PIXELS} are accepted.")
            return ImageFacts(kind.mime_type, kind.extension, width, height)
    raise UnreadableImage("The bytes are neither PNG, JPEG, WebP, GIF nor SVG.")


def _examine(data: bytes) -> Decoded:
    return Decoded(data, inspect(data), hashlib.sha256(data).hexdigest())
