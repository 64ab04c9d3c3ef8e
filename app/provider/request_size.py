"""How many characters of text a request to the model holds."""

from typing import Any, cast

# What counts for itself, or is read by nobody.
_WITHOUT_TEXT = ("input_image", "image_generation_call", "reasoning")


def characters_of(instructions: str | None, items: Any, *_: Any, **__: Any) -> int:
    """Of the arguments of the SDK's model; `items` are a text or input items."""
    return len(instructions or "") + _length(items)


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_length(one) for one in cast(list[Any], value))
    if not isinstance(value, dict):
        return 0
    item = cast(dict[str, Any], value)
    if item.get("type") in _WITHOUT_TEXT:
        return 0
    return sum(_length(item.get(name)) for name in ("content", "text", "output", "arguments"))
