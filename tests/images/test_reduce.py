"""Images that are too large, written again with fewer bytes."""

import asyncio
import io
import os

import pytest
from PIL import Image

from app.images.inspect import examine
from app.images.reduce import fit
from offline.drawing.painter import enlarge_png

SIZE = (256, 256)


async def test_an_image_that_fits_stays_as_it_is() -> None:
    image = await examine(encoded("PNG"))
    assert await fit(image, len(image.data)) is image


@pytest.mark.parametrize(("name", "mime_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
async def test_what_lies_beside_the_pixels_goes_first(name: str, mime_type: str) -> None:
    image = encoded(name)
    comment = b"\xff\xfe\xff\xff" + bytes(65_533)
    padded = enlarge_png(image, 100_000) if name == "PNG" else image[:2] + comment + image[2:]
    fitting = await fit(await examine(padded), 60_000)
    assert fitting is not None
    assert (fitting.facts.mime_type, len(fitting.data) <= 60_000) == (mime_type, True)
    with Image.open(io.BytesIO(fitting.data)) as kept, Image.open(io.BytesIO(padded)) as before:
        assert kept.tobytes() == before.tobytes()


@pytest.mark.parametrize(("name", "mime_type"), [("PNG", "image/webp"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
async def test_then_the_quality_falls(name: str, mime_type: str) -> None:
    large = encoded(name, noise(), quality=100)
    fitting = await fit(await examine(large), len(large) * 3 // 4)
    assert fitting is not None
    assert (fitting.facts.mime_type, fitting.facts.width, fitting.facts.height) == (mime_type, *SIZE)
    assert len(fitting.data) <= len(large) * 3 // 4


async def test_transparency_is_kept() -> None:
    image = noise().convert("RGBA")
    image.putalpha(Image.new("L", SIZE, 100))
    fitting = await fit(await examine(encoded("PNG", image)), 60_000)
    assert fitting is not None
    with Image.open(io.BytesIO(fitting.data)) as kept:
        assert kept.mode == "RGBA"


@pytest.mark.parametrize("data", [b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', None])
async def test_what_cannot_be_made_small_enough_is_none(data: bytes | None) -> None:
    assert await fit(await examine(data or encoded("PNG", noise())), 20) is None


@pytest.mark.slow
async def test_the_event_loop_does_not_wait_for_it() -> None:
    image = await examine(encoded("PNG", noise((1024, 1024))))
    reducing = asyncio.create_task(fit(image, len(image.data) // 3))
    turns = 0
    while not reducing.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert reducing.result() is not None
    assert turns > 10


def photo() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB")


def noise(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.frombytes("RGB", size, os.urandom(size[0] * size[1] * 3))


def encoded(name: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or photo()).save(buffer, name, **options)
    return buffer.getvalue()
