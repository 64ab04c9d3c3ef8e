"""Masks in the provider's form: the transparent part marks what to change."""

import asyncio
from io import BytesIO

from PIL import Image

from app.images.inspect import pool


async def to_alpha(data: bytes) -> bytes:
    """Convert a black-and-white image to an RGBA PNG whose black is transparent, off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(pool, _to_alpha, data)


def _to_alpha(data: bytes) -> bytes:
    # Brightness becomes opacity: https://platform.openai.com/docs/guides/image-generation
    with Image.open(BytesIO(data)) as image:
        brightness = image.convert("L")
    mask = brightness.convert("RGBA")
    mask.putalpha(brightness)
    buffer = BytesIO()
    mask.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
