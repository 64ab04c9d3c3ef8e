"""Uploaded images are decoded completely and encoded again by a child process, so that only pixels remain."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.images import child
from app.images.inspect import UnreadableImage

CONCURRENCY = 2

Mask = Literal["alpha", "black_and_white"]


@dataclass(frozen=True)
class Cleaned:
    """The new file; `mask` is the kind of mask it could serve as; `sha256` is lower-case hex."""

    mime_type: str
    extension: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    mask: Mask | None


class TooLargeWhenCleaned(UnreadableImage):
    """The image is valid, but its new file would exceed the limit."""


async def clean(source: Path, target: Path, *, max_bytes: int) -> Cleaned:
    """Encode the image in `source` again into `target`: upright, and nothing but pixels.

    Both paths are absolute. Raises UnreadableImage unless `source` is a complete, still PNG, JPEG or WebP within the
    limits.
    """
    output = await child.run("app.images.sanitise", str(source), str(target), str(max_bytes), concurrency=CONCURRENCY)
    facts = json.loads(output)
    if "rejected" in facts:
        raise (TooLargeWhenCleaned if facts["over_limit"] else UnreadableImage)(facts["rejected"])
    return Cleaned(**facts)
