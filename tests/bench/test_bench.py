"""The bench measures by hand, `./just bench`; what it writes, and what it compares with, is tested here."""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import cast
from xml.etree import ElementTree as ET

import pytest

from tests.bench import __main__ as bench
from tests.bench import report, streams
from tests.bench.curve import Curve, draw
from tests.bench.deltas import Point, streams_carried
from tests.bench.lab import Lab
from tests.bench.report import Row
from tests.bench.turns import decoded


def test_a_row_shows_ratio_and_goal() -> None:
    assert str(Row("a turn", 30, "ms", 10, "floor", ratio_most=2)) == (
        "| a turn | **3.00x** | 30 ms | 10 (floor) | <= 2x | **no** |"
    )
    assert str(Row("streams", 140, "", least=130)) == "| streams |  | 140 |  | >= 130 | yes |"
    assert Row("told", 1, "ms", 2, "floor").met is None


def test_one_bench_that_fails_loses_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Lab) -> Iterator[Row]:
        yield Row("first", 1)
        raise ValueError("no such server")

    def whole(_: Lab) -> list[Row]:
        return [Row("last", 2)]

    monkeypatch.setattr(bench, "BENCHES", {"broken": broken, "whole": whole})
    rows = bench.measure(cast(Lab, None), ["broken", "whole"])
    assert [row.what for row in rows] == ["first", "broken (not measured to its end)", "last"]
    assert rows[1].met is False
    assert "| broken (not measured to its end) |  | ValueError: no such server |" in report.page(rows, "-", "-")


def test_streams_carried_lie_where_the_delay_crosses_the_limit() -> None:
    points = [Point(10, 1, 20, 1, 1), Point(20, 1, 80, 1, 1)]
    assert streams_carried(points) == 15
    assert streams_carried(points[:1]) == 10


def test_a_curve_is_a_picture_with_named_axes_for_light_and_dark_pages() -> None:
    curves = [Curve("A & B", [(1, 2), (2, 90)]), Curve("C", [(2, 1)])]
    picture = draw("A title", "streams", "ms", curves, top=50, limit=25)
    texts = [element.text for element in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314 - our own
    assert {"A title", "streams", "ms", "A & B", "C", "goal: 25 ms"} <= set(texts)
    assert "prefers-color-scheme: dark" in picture


@pytest.mark.parametrize(("size", "expected"), [("3MB", 3.1e6), ("1.6MB", 1.6e6), ("400KB", 430e3)])
def test_the_images_have_as_many_bytes_as_their_names_say(size: str, expected: float) -> None:
    assert streams.bytes_of_final(size) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("size", streams.FINALS)
def test_the_floor_finds_every_image_once(size: str) -> None:
    whole = b"".join(streams.image_turn(7, size))
    events = [json.loads(line.removeprefix(b"data: ")) for line in whole.splitlines() if line.startswith(b"data: ")]
    texts = [event["partial_image_b64"] for event in events if "partial_image_b64" in event]
    texts += [item["result"] for item in events[-1]["response"]["output"] if item["type"] == "image_generation_call"]
    expected = [hashlib.sha256(base64.b64decode(text)).digest() for text in texts]
    assert [hashlib.sha256(image).digest() for image in decoded(bytearray(whole))] == expected
    assert len(expected) == streams.PREVIEWS[size] + 1
