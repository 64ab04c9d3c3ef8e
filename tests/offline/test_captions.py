"""The captions of the simulator's drawings: letters of every script, never a row of boxes."""

from importlib.util import find_spec
from typing import Any

import pytest

from offline.drawing import fonts
from offline.drawing.fonts import font_for
from offline.drawing.painter import ImageSpec, open_image, paint

CAPTIONS = {
    "Latin": "größere Katze",
    "Greek": "γάτα με κασκόλ",
    "Cyrillic": "кот в шарфе",
    "Arabic": "قطة رمادية",
    "Japanese": "マフラーの猫",
    "Chinese": "围巾猫画",
}


@pytest.mark.parametrize("caption", CAPTIONS.values(), ids=CAPTIONS)
def test_a_caption_of_each_script_is_made_of_different_letters(caption: str) -> None:
    font = font_for(caption, 40)
    assert font is not None
    masks: list[Any] = [font.getmask(letter) for letter in set(caption) - {" "}]
    letters = {bytes(mask) for mask in masks}
    assert len(letters) == len(set(caption) - {" "})
    assert _label(caption) != _label("")


@pytest.mark.parametrize("caption", ["고양이", "\U0010fffd", "cat \N{CAT FACE}"])
def test_a_caption_that_no_font_has_is_left_out(caption: str) -> None:
    assert font_for(caption, 40) is None
    assert _label(caption) == _label("")


def test_without_the_font_package_there_is_a_caption_in_plain_latin_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_PACKAGE", "a_package_that_is_not_installed")
    _forget()
    try:
        assert font_for("a cat", 40) is not None
        assert [script for script, caption in CAPTIONS.items() if font_for(caption, 40)] in ([], ["Latin"])
    finally:
        _forget()


def test_the_font_package_is_installed_for_development() -> None:
    assert find_spec(fonts._PACKAGE)  # pyright: ignore[reportPrivateUsage]


def _label(caption: str) -> bytes:
    """The lower left of a drawing, where the label stands."""
    spec = ImageSpec(caption, (1024, 1024), "low", "transparent", "png", 100, 0, 1, 100)
    image = open_image(paint(spec).final)
    return image.crop((0, image.height - 80, image.width * 3 // 4, image.height - 20)).tobytes()


def _forget() -> None:
    fonts._load.cache_clear()  # pyright: ignore[reportPrivateUsage]
    fonts._has.cache_clear()  # pyright: ignore[reportPrivateUsage]
