"""Token counts: the published grid for images, plain estimates for the rest."""

import io
from collections.abc import Sequence
from math import ceil

from PIL import Image

from offline.decide import Drawing
from offline.directives import Directives
from offline.wire import Json

_TOKENS_PER_PARTIAL = 100
# The side, in patches, of an image's longer edge. 2.6 has no published grid: 2.5's stands in for it.
_GRID = {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96}
_GRID_OF_2 = {"low": 16, "medium": 48, "high": 96}


def image_tokens(model: str, quality: str, size: tuple[int, int]) -> int:
    """Output tokens of one image, without partials."""
    long, short = max(size), min(size)
    newer = "-2.5-" in model or "-2.6-" in model
    side = (_GRID if newer else _GRID_OF_2)[quality]
    other = round(side * short / long)  # Python rounds halves to even, as the published formula does
    return ceil(side * other * (2_000_000 + long * short) / 4_000_000)


def image_usage(drawings: Sequence[tuple[Drawing, int]]) -> Json:
    """`tool_usage.image_gen`: the sum over (drawing, partials sent)."""
    text = sum(_words(drawing.spec.prompt) for drawing, _ in drawings)
    given = sum(_input_tokens(source) for drawing, _ in drawings for source in drawing.spec.sources)
    made = sum(
        image_tokens(drawing.model, drawing.quality, drawing.spec.pixels) + _TOKENS_PER_PARTIAL * partials
        for drawing, partials in drawings
    )
    return {
        "input_tokens": text + given,
        "input_tokens_details": {"image_tokens": given, "text_tokens": text},
        "output_tokens": made,
        "output_tokens_details": {"image_tokens": made, "text_tokens": 0},
        "total_tokens": text + given + made,
    }


def text_usage(conversation: list[str], answered: str | None, directives: Directives) -> Json:
    """`usage` of the response itself, with the counts that the directives ask for."""
    given = int(directives.number("input", 8 + sum(_words(text) for text in conversation)))
    made = 4 + _words(answered or "")
    cached, written, for_12h = (int(directives.number(name, 0)) for name in ("cached", "cache_write", "cache_12h"))
    writes = {
        "cache_write_tokens": written,
        "cache_write_tokens_details": {"ttl_30m_tokens": written - for_12h, "ttl_12h_tokens": for_12h},
    }
    shows_writes = directives.text("no_usage") != "cache_write"
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached, **(writes if shows_writes else {})},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + made,
    }


def _words(text: str) -> int:
    return ceil(len(text) / 4)


def _input_tokens(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return min(1536, ceil(image.width / 32) * ceil(image.height / 32))
