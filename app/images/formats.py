"""The formats of images: how each is recognised, and measured without decoding its pixels."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any
from xml.parsers import expat

from app.input_limits import MAX_PIXELS
from app.loading import load

# Chunks of a PNG or segments of a JPEG: an image of 50 MB has a few thousand.
MAX_PARTS = 100_000


class UnreadableImage(ValueError):
    """The bytes are not a complete image of a known type; the message says why."""


def _measure_png(data: bytes) -> tuple[int, int]:
    position, chunks = 8, 0
    while data[position + 4 : position + 8] != b"IEND":
        if position >= len(data):
            raise UnreadableImage("The PNG is truncated: its end is missing.")
        position += 12 + int.from_bytes(data[position : position + 4])
        chunks = _count(chunks)
    if position + 12 > len(data):
        raise UnreadableImage("The PNG is truncated: its end is missing.")
    return _measure_by_header(data, "PNG")


def _measure_jpeg(data: bytes) -> tuple[int, int]:
    # Segments are skipped by their lengths: an embedded thumbnail has an end marker of its own.
    position, segments = 2, 0
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        # A marker may be preceded by any number of fill bytes.
        fill = data[position + 1] == 0xFF
        position += 1 if fill else 2 + int.from_bytes(data[position + 2 : position + 4])
        segments = _count(segments)
    if data[position : position + 2] != b"\xff\xda" or data.find(b"\xff\xd9", position) < 0:
        raise UnreadableImage("The JPEG is truncated: its end marker is missing.")
    return _measure_by_header(data, "JPEG")


def _count(parts: int) -> int:
    if parts >= MAX_PARTS:
        raise UnreadableImage(f"The image has more than {MAX_PARTS} chunks or segments.")
    return parts + 1


def _measure_gif(data: bytes) -> tuple[int, int]:
    try:
        _walk_gif(data)
    except IndexError:
        raise UnreadableImage("The GIF is truncated: its trailer is missing.") from None
    return _measure_by_header(data, "GIF")


def _walk_gif(data: bytes) -> None:
    """Walk the blocks up to the trailer; raises IndexError when the bytes end earlier."""
    position = 13 + _gif_palette(data[10])
    while (kind := data[position]) != 0x3B:
        if kind == 0x2C:
            position += 11 + _gif_palette(data[position + 9])
        elif kind == 0x21:
            position += 2
        else:
            raise UnreadableImage("The GIF's blocks cannot be read.")
        while length := data[position]:
            position += 1 + length
        position += 1


def _gif_palette(flags: int) -> int:
    """Bytes of the colour table that follows a descriptor with these flags."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _measure_webp(data: bytes) -> tuple[int, int]:
    # Parsed here because Pillow's reader allocates the whole canvas before it reports the size.
    if len(data) < 30 or len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise UnreadableImage("The WebP is truncated: it is shorter than its header says.")
    chunk = data[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
        return width & 0x3FFF, height & 0x3FFF
    raise UnreadableImage("The WebP's header cannot be read.")


@cache
def _pillow() -> Any:
    """An API never inspects: it leaves that to a child process."""
    return load("PIL.Image")


def _measure_by_header(data: bytes, name: str) -> tuple[int, int]:
    pillow = _pillow()
    try:
        with pillow.open(BytesIO(data), formats=[name]) as image:
            width, height = image.size
            return width, height
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise UnreadableImage(f"The {name} is too large: at most {MAX_PIXELS} pixels are accepted.") from None
    except (OSError, SyntaxError, ValueError):
        raise UnreadableImage(f"The {name}'s header cannot be read.") from None


def _measure_svg(data: bytes) -> tuple[int, int]:
    # With an explicit encoding the parser ignores the one that the file declares.
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    root: list[tuple[str, dict[str, str]]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if not root:
            root.append((name, attributes))

    def reject_doctype(*_: object) -> None:
        raise UnreadableImage("The SVG has a document type, which is rejected because it can define entities.")

    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = reject_doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise UnreadableImage(f"The SVG is not well-formed UTF-8 XML: {error}.") from None
    name, attributes = root[0]
    if name not in ("svg", "http://www.w3.org/2000/svg svg"):
        raise UnreadableImage("The bytes are XML but not SVG.")
    return _svg_size(attributes)


def _svg_size(attributes: dict[str, str]) -> tuple[int, int]:
    lengths = [re.fullmatch(_LENGTH, attributes.get(name, "")) for name in ("width", "height")]
    sizes = [float(match[1]) for match in lengths if match]
    if len(sizes) < 2:
        box = re.split(r"[\s,]+", attributes.get("viewBox", "").strip())
        sizes = [float(part) for part in box[2:] if re.fullmatch(_LENGTH, part)]
        if len(box) != 4 or len(sizes) != 2:
            raise UnreadableImage("The SVG has neither width and height nor a viewBox.")
    return max(1, round(sizes[0])), max(1, round(sizes[1]))


# At most nine digits and no exponent, which could be infinite.
_LENGTH = r"\s*([0-9]{1,9}(?:\.[0-9]{0,9})?)(?:px)?\s*"


@dataclass(frozen=True)
class Kind:
    mime_type: str
    extension: str
    matches: Callable[[bytes], bool]
    measure: Callable[[bytes], tuple[int, int]]


KINDS = (
    Kind("image/png", "png", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), _measure_png),
    Kind("image/jpeg", "jpg", lambda data: data.startswith(b"\xff\xd8\xff"), _measure_jpeg),
    Kind("image/webp", "webp", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _measure_webp),
    Kind("image/gif", "gif", lambda data: data[:6] in (b"GIF87a", b"GIF89a"), _measure_gif),
    Kind("image/svg+xml", "svg", lambda data: data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"), _measure_svg),
)
