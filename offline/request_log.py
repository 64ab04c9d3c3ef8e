"""What was asked of the provider, for tests to look at: the latest requests, in bounded memory."""

import re
from collections import deque
from typing import Any, cast

from offline.wire import Json, as_object, encode

_MAX_REQUESTS = 10_000
_MAX_BYTES = 32 * 1024 * 1024
_SHOWN_LETTERS = 200
_BASE64 = re.compile(r"(data:[\w/+.-]+;base64,)?[A-Za-z0-9+/=_-]+")


class RequestLog:
    """Entries are kept as JSON text; the oldest make room once there are too many or they weigh too much."""

    def __init__(self) -> None:
        self._entries: deque[bytes] = deque()
        self._weight = 0

    def add(self, method: str, path: str, body_bytes: int, body: Json | None) -> None:
        """`body_bytes` is the length on the wire, `body` what is shown of it: abbreviate it before."""
        self._entries.append(encode({"method": method, "path": path, "body_bytes": body_bytes, "body": body}))
        self._weight += len(self._entries[-1])
        while len(self._entries) > _MAX_REQUESTS or self._weight > _MAX_BYTES:
            self._weight -= len(self._entries.popleft())

    def listed(self) -> bytes:
        """A JSON array, newest last."""
        return b"[" + b",".join(self._entries) + b"]"

    def clear(self) -> None:
        self._entries.clear()
        self._weight = 0


def abbreviated(value: Any) -> Any:
    """The same JSON with long base64 replaced by its length."""
    if isinstance(value, dict):
        return {key: abbreviated(item) for key, item in as_object(cast(object, value)).items()}
    if isinstance(value, list):
        return [abbreviated(item) for item in cast(list[Any], value)]
    if isinstance(value, str) and len(value) > _SHOWN_LETTERS and _BASE64.fullmatch(value):
        return f"<{len(value)} chars>"
    return value
