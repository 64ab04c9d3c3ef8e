"""How many tokens a picture takes, where that is published, and how a response's tokens are shared by its pictures."""

from collections.abc import Sequence
from math import ceil

TOKENS_PER_PARTIAL = 100
# In patches, of a picture's longer edge. The formula is the provider's calculator's for gpt-image-2 and 2.5.
_EDGES_OF_2 = {"low": 16, "medium": 48, "high": 96}
_EDGES_OF_2_5 = {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96}
# 2.6 has no published grid; so much more than 2.5 was measured, in percent.
_PERCENT_OF_2_6 = {"low": 420, "medium": 420, "high": 105, "xhigh": 105, "max": 105}
# Square, portrait, landscape: the provider's tables for the older models.
_TOKENS_OF_1 = {"low": (272, 408, 400), "medium": (1056, 1584, 1568), "high": (4160, 6240, 6208)}
_OLDER = ("gpt-image-1", "gpt-image-1.5", "gpt-image-1-mini", "chatgpt-image-latest")
STANDARD_SIZES = ("1024x1024", "1024x1536", "1536x1024")
LEAST_INPUT_TOKENS, MOST_INPUT_TOKENS, PATCH = 64, 1536, 32


def output_tokens(model: str, *, quality: str | None, size: str | None, frames: int = 1) -> int:
    """Of one picture without its previews; what is `auto` or unknown counts as the model's dearest."""
    qualities = _qualities(model)
    quality = quality if quality in qualities else list(qualities)[-1]
    found = _pixels(size)
    sizes = [found] if found else [_parsed(standard) for standard in STANDARD_SIZES]
    return max(_tokens(model, quality, width, height) for width, height in sizes) * max(frames, 1)


def is_published(model: str, *, quality: str | None, size: str | None) -> bool:
    """Whether the provider says how many tokens such a picture takes."""
    return _is_known(model) and quality in _qualities(model) and _pixels(size) is not None


def input_tokens(width: int, height: int) -> int:
    """Of a picture that a model looks at. No rule is published: this one agrees with what was recorded."""
    patches = ceil(width / PATCH) * ceil(height / PATCH)
    return min(MOST_INPUT_TOKENS, max(LEAST_INPUT_TOKENS, patches))


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Share out a total by weights, to the last one: those with the largest remainder get one more (Hamilton)."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    shares = [total * weight // whole for weight in weights]
    remainders = [total * weight % whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda place: (-remainders[place], place))
    for place in order[: total - sum(shares)]:
        shares[place] += 1
    return shares


def _is_older(model: str) -> bool:
    return model in _OLDER


def _is_known(model: str) -> bool:
    return _is_older(model) or model == "gpt-image-2" or model.startswith("gpt-image-2.5-")


def _qualities(model: str) -> dict[str, int]:
    """From the cheapest to the dearest."""
    return _EDGES_OF_2 if _is_older(model) or model == "gpt-image-2" else _EDGES_OF_2_5


def _tokens(model: str, quality: str, width: int, height: int) -> int:
    if _is_older(model):
        shape = 0 if width == height else 1 if width < height else 2
        return _TOKENS_OF_1[quality][shape]
    long, short = max(width, height), min(width, height)
    edge = _qualities(model)[quality]
    other = round(edge * short / long)  # Python rounds halves to even, as the published formula does.
    tokens = -(-edge * other * (2_000_000 + width * height) // 4_000_000)
    return tokens if _is_known(model) else ceil(tokens * _PERCENT_OF_2_6[quality] / 100)


def _pixels(size: str | None) -> tuple[int, int] | None:
    try:
        return _parsed(size or "")
    except ValueError:
        return None


def _parsed(size: str) -> tuple[int, int]:
    width, height = (int(edge) for edge in size.split("x"))
    if width < 1 or height < 1:
        raise ValueError(size)
    return width, height
