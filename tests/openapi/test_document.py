"""The OpenAPI document, and the files that are made from it."""

from functools import cache
from pathlib import Path

import pytest

from docs.generate import generated

ROOT = Path(__file__).resolve().parents[2]
FILES = ("openapi.json", "docs/api.md", "docs/events.md")


@pytest.mark.parametrize("path", FILES)
def test_the_generated_file_is_current(path: str) -> None:
    assert (ROOT / path).read_text() == _generated()[path], (
        "The API has changed: run `./just openapi`, commit its files"
    )


@cache
def _generated() -> dict[str, str]:
    return generated()
