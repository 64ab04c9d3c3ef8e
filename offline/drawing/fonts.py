"""Fonts for captions: Noto Sans for most scripts where its package is installed, else Pillow's own for plain Latin."""

from contextlib import suppress
from functools import cache
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PACKAGE = "textflowkit_fonts"
_NOTO_FILES = ("NotoSans.ttf", "NotoSansArabic.ttf", "NotoSansSC.ttf")  # Latin, Greek, Cyrillic; Arabic; CJK and kana
_REGULAR = 400.0
_PROBE_PIXELS = 24
_IN_NO_FONT = "\U0010fffe"


def font_for(text: str, pixels: float) -> Font | None:
    """A font that has every character of the text, or None: no caption is better than a row of boxes."""
    for name in ("", *_NOTO_FILES):
        probe = _load(name, _PROBE_PIXELS)
        if probe and _can_shape(name) and all(_has(name, letter) for letter in set(text)):
            return _load(name, pixels)
    return None


def _can_shape(name: str) -> bool:
    # Without Raqm the letters of Arabic stand apart and run the wrong way.
    return "Arabic" not in name or features.check("raqm") is True


@cache
def _load(name: str, pixels: float) -> Font | None:
    if not name:
        return ImageFont.load_default(pixels)
    if find_spec(_PACKAGE) is None:
        return None
    with as_file(files(_PACKAGE) / "fonts" / name) as path:
        return _opened(path, pixels)


def _opened(path: Path, pixels: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(path, pixels)
    with suppress(OSError):  # a font of one weight
        font.set_variation_by_axes([_REGULAR])
    return font


@cache
def _has(name: str, letter: str) -> bool:
    font = _load(name, _PROBE_PIXELS)
    return font is not None and (letter.isspace() or _ink(font, letter) not in (b"", _ink(font, _IN_NO_FONT)))


def _ink(font: Font, letter: str) -> bytes:
    """The letter's pixels; empty where nothing is drawn."""
    mask: Any = font.getmask(letter)  # Pillow's type does not say that it can be read as bytes
    return bytes(mask) if mask.getbbox() else b""
