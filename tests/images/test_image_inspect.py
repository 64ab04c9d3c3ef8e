"""Image facts from bytes: types, sizes, truncated files, decompression bombs and other formats."""

import asyncio
import hashlib
import struct
import zlib
from io import BytesIO

import pytest
from PIL import Image

from app.images.inspect import ImageFacts, UnreadableImage, examine, inspect

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="120.4px" height="80"><path d="M0 0h9"/></svg>'
EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif"}


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_image_is_recognised_by_its_bytes(name: str) -> None:
    assert inspect(_image(name)) == ImageFacts(f"image/{name.lower()}", EXTENSIONS[name], 64, 48)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_kind_of_webp_is_measured(options: dict[str, object], mode: str) -> None:
    facts = inspect(_image("WEBP", mode, **options))
    assert (facts.width, facts.height) == (64, 48)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_image_truncated_anywhere_is_rejected(name: str) -> None:
    whole = _image(name)
    for length in range(1, len(whole)):
        with pytest.raises(UnreadableImage):
            inspect(whole[:length])


def test_the_end_of_an_embedded_thumbnail_is_not_the_end_of_the_image() -> None:
    whole = _image("JPEG")
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 6) + b"\xff\xd8..\xff\xd9"
    with_thumbnail = whole[:2] + thumbnail + whole[2:]
    assert inspect(with_thumbnail).width == 64
    with pytest.raises(UnreadableImage, match="truncated"):
        inspect(with_thumbnail[:-2])


@pytest.mark.parametrize(
    "svg",
    [
        SVG,
        b"\xef\xbb\xbf" + SVG,
        b'<?xml version="1.0"?>\n<!-- a drawing -->\n' + SVG,
        b'<svg viewBox="0 0 120,80"/>',
        b'<svg width="100%" height="100%" viewBox="-5 -5 120 80"/>',
    ],
)
def test_an_svg_is_recognised_by_its_root(svg: bytes) -> None:
    assert inspect(svg) == ImageFacts("image/svg+xml", "svg", 120, 80)


@pytest.mark.parametrize(
    "data",
    [
        SVG[:-3],
        SVG.decode().encode("utf-16"),
        SVG.replace(b"M0 0h9", b"\xff\xfe"),
        b"<!DOCTYPE svg>" + SVG,
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + SVG,
        b"<html><body/></html>",
        b'<a:svg xmlns:a="urn:other" width="1" height="1"/>',
        b"<svg/>",
        b'<svg width="1e309" height="1"/>',
        b'<svg width="0" height="-1"/>',
        b'<svg width="99999999" height="99999999"/>',
        b"",
        b"BM" + bytes(100),
        b"%PDF-1.7",
        b"just words",
        b"RIFF\x10\0\0\0WAVEfmt " + bytes(40),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a;",
    ],
)
def test_anything_else_is_rejected(data: bytes) -> None:
    with pytest.raises(UnreadableImage):
        inspect(data)


@pytest.mark.parametrize("edge", [7_100, 13_000, 60_000])
def test_a_decompression_bomb_is_rejected_by_its_header(edge: int) -> None:
    with pytest.raises(UnreadableImage, match="at most"):
        inspect(_png_that_claims(edge, edge))


def test_an_image_is_examined_and_its_content_hashed() -> None:
    data = _image("PNG")
    decoded = asyncio.run(examine(data))
    assert (decoded.data, decoded.facts, decoded.sha256) == (data, inspect(data), hashlib.sha256(data).hexdigest())


def _image(name: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = BytesIO()
    Image.radial_gradient("L").crop((0, 0, 64, 48)).convert(mode).save(buffer, name, **options)
    return buffer.getvalue()


def _png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
