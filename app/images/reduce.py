"""Images written again with fewer bytes, where they have more than may be stored.

`python -m app.images.reduce MAX_BYTES` is the child process that does it: it reads the image from standard input and
prints the new one, or nothing where none is small enough.
"""

import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from PIL import Image

from app.images import child
from app.images.inspect import Decoded, UnreadableImage, examine
from app.images.thumbnails import in_rgb

# The same pixels again: what is lost is what stood beside them.
_LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 6},
    "JPEG": {"quality": "keep"},
    "GIF": {"optimize": True},
}
_QUALITIES = (95, 90, 80, 70, 60)
_AT_ONCE = 1


async def fit(image: Decoded, max_bytes: int) -> Decoded | None:
    """The image in at most so many bytes: its own format first, then falling quality; None where neither is enough."""
    if len(image.data) <= max_bytes:
        return image
    try:
        reduced = await child.run("app.images.reduce", str(max_bytes), stdin=image.data, concurrency=_AT_ONCE)
        return await examine(reduced) if reduced else None
    except UnreadableImage:
        return None


def main() -> None:
    child.limit_process(max_file_bytes=0)
    sys.stdout.buffer.write(_reduce(sys.stdin.buffer.read(), int(sys.argv[1])))


def _reduce(data: bytes, max_bytes: int) -> bytes:
    with Image.open(BytesIO(data), formats=["PNG", "JPEG", "WEBP", "GIF"]) as image:
        moving = bool(getattr(image, "is_animated", False))
        # The encoder would copy it.
        image.info.pop("comment", None)
        for name, options in _forms(image.format or ""):
            still = image if name == image.format or moving else in_rgb(image)
            buffer = BytesIO()
            still.save(buffer, name, save_all=moving, icc_profile=image.info.get("icc_profile"), **options)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
    return b""


def _forms(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Formats and their options, the best first."""
    if name in _LOSSLESS:
        yield name, _LOSSLESS[name]
    for quality in _QUALITIES:
        # Method 0 fails for large images, and the default takes twice as long.
        yield ("JPEG", {"quality": quality}) if name == "JPEG" else ("WEBP", {"quality": quality, "method": 2})


if __name__ == "__main__":
    main()
