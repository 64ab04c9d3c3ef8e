"""Masks in the provider's form: the transparent part marks what to change.

`python -m app.images.masks` is the child process that converts one: from standard input to standard output.
"""

import sys
from io import BytesIO

from PIL import Image

from app.images import child

_AT_ONCE = 1


async def to_alpha(data: bytes) -> bytes:
    """Convert a black-and-white image to an RGBA PNG whose black is transparent; raises UnreadableImage."""
    return await child.run("app.images.masks", stdin=data, concurrency=_AT_ONCE)


def main() -> None:
    child.limit_process(max_file_bytes=0)
    sys.stdout.buffer.write(_to_alpha(sys.stdin.buffer.read()))


def _to_alpha(data: bytes) -> bytes:
    # Brightness becomes opacity: https://platform.openai.com/docs/guides/image-generation
    with Image.open(BytesIO(data)) as image:
        brightness = image.convert("L")
    mask = brightness.convert("RGBA")
    mask.putalpha(brightness)
    buffer = BytesIO()
    mask.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
