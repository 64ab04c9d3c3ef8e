"""The smaller copies of an image: which there are, and what each of them is."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTHS = (256, 512, 1024)
MIME_TYPE = "image/webp"
RASTER_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})


@dataclass(frozen=True)
class Thumbnail:
    """A WebP; `width` and `height` are in pixels, after rotation."""

    width: int
    height: int
    data: bytes


@dataclass(frozen=True)
class Thumbnails:
    """`images`: smallest first."""

    images: Sequence[Thumbnail]
    blurhash: str
