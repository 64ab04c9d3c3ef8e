"""Masks as the provider takes them: what is transparent may be painted over."""

import asyncio
from io import BytesIO

from PIL import Image

from app.images.inspect import pool


async def to_alpha(data: bytes) -> bytes:
    """A black-and-white picture as an RGBA PNG whose black is transparent, made off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(pool, _to_alpha, data)


def _to_alpha(data: bytes) -> bytes:
    # The brightness stands for the opacity: https://platform.openai.com/docs/guides/image-generation
    with Image.open(BytesIO(data)) as picture:
        brightness = picture.convert("L")
    mask = brightness.convert("RGBA")
    mask.putalpha(brightness)
    buffer = BytesIO()
    mask.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
