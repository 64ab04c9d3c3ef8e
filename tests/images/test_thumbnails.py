"""Thumbnails, compared by their pixels."""

import asyncio
import sys
from io import BytesIO
from typing import Any, cast

import blurhash
import pytest
from PIL import Image, ImageCms

from app.images.inspect import UnreadableImage
from app.images.thumbnails import make_thumbnails

ORIENTATION, DESCRIPTION = 0x0112, 0x010E


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1536), [(256, 384), (512, 768), (1024, 1536)]),
        ((300, 200), [(256, 171)]),
        ((512, 512), [(256, 256), (512, 512)]),
        ((255, 900), []),
        ((3000, 1), [(256, 1), (512, 1), (1024, 1)]),
        ((300, 30_000), []),
    ],
)
async def test_no_thumbnail_is_larger_than_the_image(size: tuple[int, int], expected: list[tuple[int, int]]) -> None:
    made = await make_thumbnails(encoded(Image.new("RGB", size, "red"), "PNG"))
    assert [(one.width, one.height) for one in made.images] == expected
    assert components_of(made.blurhash) == (4, 3)


async def test_a_photo_is_rotated_upright_and_loses_its_metadata() -> None:
    photo = Image.new("RGB", (2400, 1600), "white")
    photo.paste("black", (0, 0, 2400, 800))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[DESCRIPTION] = "at home"
    made = await make_thumbnails(encoded(photo, "JPEG", exif=exif))
    assert [(one.width, one.height) for one in made.images] == [(256, 384), (512, 768), (1024, 1536)]
    for thumbnail in made.images:
        assert b"at home" not in thumbnail.data
        with Image.open(BytesIO(thumbnail.data)) as image:
            assert luminance(image, 0.9, 0.5) < 10
            assert luminance(image, 0.1, 0.5) > 245


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "I;16", "CMYK"])
async def test_every_pixel_format_keeps_its_brightness(mode: str) -> None:
    white = Image.new("I;16", (300, 300), 65_535) if mode == "I;16" else Image.new("L", (300, 300), 255).convert(mode)
    white.paste(0 if mode != "CMYK" else (0, 0, 0, 255), (150, 0, 300, 300))
    made = await make_thumbnails(encoded(white, "JPEG" if mode == "CMYK" else "PNG"))
    with Image.open(BytesIO(made.images[0].data)) as image:
        assert luminance(image, 0.8, 0.5) < 10
        assert luminance(image, 0.2, 0.5) > 245


@pytest.mark.parametrize(("mode", "kept"), [("RGB", True), ("P", True), ("L", False)])
async def test_a_profile_stays_unless_it_is_of_other_channels(mode: str, kept: bool) -> None:
    profile = ImageCms.ImageCmsProfile(cast(Any, ImageCms).createProfile("sRGB")).tobytes()
    made = await make_thumbnails(encoded(Image.new(mode, (300, 300)), "PNG", icc_profile=profile))
    with Image.open(BytesIO(made.images[0].data)) as image:
        assert image.info.get("icc_profile") == (profile if kept else None)


async def test_transparency_is_kept_and_counts_as_white_in_the_blurhash() -> None:
    made = await make_thumbnails(encoded(Image.new("RGBA", (256, 256), (0, 0, 0, 0)), "PNG"))
    with Image.open(BytesIO(made.images[0].data)) as image:
        assert cast(tuple[int, ...], image.getpixel((100, 100)))[3] == 0
    assert made.blurhash == (await make_thumbnails(encoded(Image.new("RGB", (256, 256), "white"), "PNG"))).blurhash


async def test_thumbnails_of_a_gif_show_its_first_frame() -> None:
    frames = [Image.new("RGB", (600, 600), color) for color in ("red", "blue")]
    made = await make_thumbnails(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert [one.width for one in made.images] == [256, 512]
    with Image.open(BytesIO(made.images[0].data)) as image:
        red, _, blue = cast(tuple[int, int, int], image.convert("RGB").getpixel((9, 9)))
        assert red > 200
        assert blue < 50


async def test_a_small_image_waits_for_the_child_that_decodes_a_large_one() -> None:
    ended: list[int] = []

    async def make(width: int, height: int) -> None:
        await make_thumbnails(encoded(Image.new("RGB", (width, height), "red"), "PNG"))
        ended.append(width)

    async with asyncio.TaskGroup() as group:
        for size in ((2100, 2100), (300, 200)):
            group.create_task(make(*size))
    assert ended == [2100, 300]


async def test_a_copy_of_half_the_size_averages_pixels() -> None:
    stripes = Image.new("L", (512, 512), 255)
    stripes.paste(0, (0, 0, 512, 512), Image.frombytes("L", (512, 512), bytes([255, 0] * 256 * 512)))
    made = await make_thumbnails(encoded(stripes, "PNG"))
    with Image.open(BytesIO(made.images[0].data)) as image:
        assert abs(luminance(image, 0.5, 0.5) - 127) < 4


async def test_every_copy_is_made_from_the_next_wider_one_with_the_fastest_method() -> None:
    image = Image.effect_noise((1024, 1024), 50).convert("RGB")
    made = await make_thumbnails(encoded(image, "PNG"))
    scaled = [image.reduce(2).reduce(2), image.reduce(2), image]
    assert [one.data for one in made.images] == [encoded(each, "WEBP", quality=75, method=0) for each in scaled]


async def test_pixels_of_an_image_as_wide_as_its_copy_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: list[Any] = []
    reduce = Image.Image.reduce

    def recorded(image: Image.Image, factor: Any, box: Any = None) -> Image.Image:
        # That of the blurhash has a box.
        factors.extend([factor] if box is None else [])
        return reduce(image, factor, box)

    monkeypatch.setattr(Image.Image, "reduce", recorded)
    exif = Image.Exif()
    exif[DESCRIPTION] = "at home"
    made = await make_thumbnails(encoded(Image.new("RGB", (1024, 1024), "red"), "JPEG", exif=exif))
    assert factors == [2, 2]
    assert not any(b"at home" in one.data for one in made.images)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
async def test_nothing_holds_the_bytes_while_copies_are_encoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (600, 600), "red"), kind)
    held, found = sys.getrefcount(data), list[int]()
    save = Image.Image.save

    def counted(*arguments: Any, **options: Any) -> None:
        found.append(sys.getrefcount(data))
        save(*arguments, **options)

    monkeypatch.setattr(Image.Image, "save", counted)
    await make_thumbnails(data)
    assert found == [held, held]


async def test_a_copy_of_two_thirds_has_no_rims_beside_edges() -> None:
    image = Image.new("L", (1536, 1536), 64)
    image.paste(192, (767, 0, 1536, 1536))
    made = await make_thumbnails(encoded(image, "PNG"))
    with Image.open(BytesIO(made.images[-1].data)) as copy:
        darkest, brightest = cast(tuple[int, int], copy.convert("L").getextrema())
    assert darkest > 61
    assert brightest < 195


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n" + b"x" * 99])
async def test_bytes_that_are_no_image_are_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableImage):
        await make_thumbnails(data)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def luminance(image: Image.Image, x: float, y: float) -> int:
    """From 0 to 255, at these parts of the width and of the height."""
    place = (round(x * image.width), round(y * image.height))
    return cast(int, image.convert("L").getpixel(place))


def components_of(text: str) -> tuple[int, int]:
    return cast(Any, blurhash).components(text)
