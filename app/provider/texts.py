"""What the provider sent, in texts that UTF-8 and Postgres take: a paid answer is not lost for one odd character."""

import json
from typing import Any, cast

from pydantic_core import from_json


def read_json(text: str) -> Any:
    """What `json.loads` gives, in a quarter of its time, and storable; raises json.JSONDecodeError."""
    try:
        data = from_json(text)
    except ValueError:  # half a surrogate pair, for one
        return storable(json.loads(text))
    return storable(data) if "\\u0000" in text else data


def storable(node: Any) -> Any:
    """Texts at any depth without NUL, and with U+FFFD for each half of a surrogate pair."""
    if isinstance(node, str):
        text = node.replace("\0", "")
        return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(node, list):
        return [storable(item) for item in cast(list[Any], node)]
    if isinstance(node, dict):
        return {storable(key): storable(value) for key, value in cast(dict[Any, Any], node).items()}
    return node
