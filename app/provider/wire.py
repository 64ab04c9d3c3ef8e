"""The SDK's client with another reader of streams: images leave a stream as bytes, before anything parses JSON.

This is the only file that uses private parts of the SDK, whose version is pinned. What it saves, and how it is compared
with the plain SDK, is in docs/decisions/0018-the-wire-tap.md.
"""

import re
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar, cast, get_args
from weakref import WeakSet

import httpx2
import pybase64
from openai import AsyncOpenAI
from openai._streaming import ServerSentEvent, SSEDecoder
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, ValidationError
from typing_extensions import override

from app.provider.image_bytes import Base64Reader, ImageBytes, decode
from app.provider.texts import read_json

T = TypeVar("T")

# The extra field of an event or output item whose base64 was taken out.
IMAGE = "image_bytes"
# Shorter values stay in the JSON.
MIN_LETTERS = 128
# Of an event with more images, those that came before in the stream are dropped: `response.completed` repeats all.
MAX_COPIES = 8
# Shorter lines are not searched: a text delta has about 300 bytes.
MIN_LINE = 512

_STREAM_EVENT: Any = ResponseStreamEvent
_KEYS = ("partial_image_b64", "result", "b64_json")
# A quote inside of a string has a backslash before it, so text that quotes JSON does not match.
_VALUE = re.compile(rb'(?<!\\)"(?:' + "|".join(_KEYS).encode() + rb')"[ \t]{0,8}:[ \t]{0,8}"')
# Only in a line that has named this is a value taken for an image.
_TOOL = b"image_generation"
_HEAD = re.compile(rb"(?:[A-Za-z0-9+/=\s]++|\\[nrt/]|\\u00[0-9a-fA-F]{2})*\\?[u0-9a-fA-F]{0,4}")
_EVENT_TYPES = {
    get_args(event_type.model_fields["type"].annotation)[0]: event_type
    for event_type in cast(tuple[type[BaseModel], ...], get_args(get_args(_STREAM_EVENT)[0]))
}


def image_of(holder: BaseModel, base64: str) -> ImageBytes:
    """Take the image out of an event or output item; `base64` is its field, decoded here where it was not tapped."""
    tapped = (holder.model_extra or {}).pop(IMAGE, None)
    return tapped if isinstance(tapped, ImageBytes) else decode(base64)


class WireTapClient(AsyncOpenAI):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Weak: an image is held by whoever stores it, not for the copies that may follow.
        self._known: WeakSet[ImageBytes] = WeakSet()

    @override
    def _make_sse_decoder(self) -> SSEDecoder:
        return TapDecoder(self._known)

    @override
    def _process_response_data(self, *, data: object, cast_to: type[T], response: httpx2.Response) -> T:
        """The type of an event names its class; the SDK lets pydantic try all sixty."""
        if cast_to is _STREAM_EVENT and isinstance(data, dict):
            event = cast(dict[str, Any], data)
            if event_type := _EVENT_TYPES.get(str(event.get("type"))):
                return cast(T, _event_of(event_type, event))
        return super()._process_response_data(data=cast(object, data), cast_to=cast_to, response=response)


def _event_of(event_type: type[BaseModel], data: dict[str, Any]) -> BaseModel:
    try:
        return event_type.model_validate(data)
    except ValidationError:
        # As in the SDK: old streams lack fields, and new ones have values that it does not know.
        return event_type.model_construct(**data)


class TapDecoder(SSEDecoder):
    """Yields the SDK's events; an image becomes an ImageBytes in the field IMAGE, beside a reference to it.

    A copy of one of the `known` images becomes that image.
    """

    def __init__(self, known: WeakSet[ImageBytes]) -> None:
        super().__init__()
        self._lines = _Lines(known)

    @override
    async def aiter_bytes(self, iterator: AsyncIterator[bytes]) -> AsyncIterator[ServerSentEvent]:
        # What follows the last line end belongs to no event.
        async for chunk in iterator:
            for line in self._lines.feed(chunk):
                if event := self.decode(line.decode()):
                    images, self._lines.images = self._lines.images, {}
                    yield _TappedEvent(event, images)


class _TappedEvent(ServerSentEvent):
    def __init__(self, event: ServerSentEvent, images: dict[str, ImageBytes]) -> None:
        super().__init__(event=event.event, data=event.data, id=event.id, retry=event.retry)
        self._images = images

    @override
    def json(self) -> Any:
        data = read_json(self.data)
        return _with_images(data, self._images) if self._images else data


def _with_images(node: Any, images: dict[str, ImageBytes]) -> Any:
    """Images beside their references; in what is no image to the SDK, base64 in place of the reference."""
    if isinstance(node, list):
        return [_with_images(item, images) for item in cast(list[Any], node)]
    if not isinstance(node, dict):
        return node
    fields = cast(dict[str, Any], node)
    for key, value in list(fields.items()):
        image = images.get(value) if isinstance(value, str) else None
        if image is None:
            fields[key] = _with_images(value, images)
        elif "image" in str(fields.get("type")):
            fields[IMAGE] = image
        elif image.data is not None:
            fields[key] = pybase64.b64encode(image.data).decode()
    return fields


class _Lines:
    """Lines of a stream, ended by LF, CR or CRLF; long base64 in them is replaced by names of `images`."""

    def __init__(self, known: WeakSet[ImageBytes]) -> None:
        self.images: dict[str, ImageBytes] = {}
        self._known = known
        self._names = f"image:{secrets.token_hex(8)}:"
        self._count = 0
        self._seen: set[tuple[int, int]] = set()  # sizes and checksums, in a stream of many images
        self._after_cr = False
        self._line = bytearray()
        self._searched = 0
        self._value: Base64Reader | None = None
        self._in_escape = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        if self._value is not None and self._value.feed_plain(chunk):
            return
        *ended, begun = self._split(chunk)
        for part in ended:
            if not self._line and len(part) < MIN_LINE:
                yield part
                continue
            self._take(part, ended=True)
            line = bytes(self._line)
            self._line.clear()
            self._searched, self._value = 0, None
            yield line
        if begun:
            self._take(begun, ended=False)

    def _split(self, chunk: bytes) -> list[bytes]:
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif chunk:
            self._after_cr = False
        # Most chunks of an image have no line end, and split() looks at one byte at a time.
        return chunk.split(b"\n") if b"\n" in chunk else [chunk]

    def _take(self, part: bytes, *, ended: bool) -> None:
        while part:
            if self._value is not None:
                part = self._take_value(self._value, part)
                continue
            self._line += part
            part = self._cut_before_value(ended=ended)

    def _cut_before_value(self, *, ended: bool) -> bytes:
        """End the line where a value begins, and return what followed; nothing where there is none."""
        if len(self._line) < MIN_LINE:
            return b""
        while match := _VALUE.search(self._line, self._searched):
            start = match.end()
            head = self._line[start : start + MIN_LETTERS]
            if len(head) < MIN_LETTERS and b'"' not in head and not ended:
                self._searched = match.start()
                return b""
            if len(head) == MIN_LETTERS and _HEAD.fullmatch(head) and self._line.find(_TOOL, 0, start) >= 0:
                rest = bytes(memoryview(self._line)[start:])
                del self._line[start:]
                self._value = Base64Reader(self._known)
                return rest
            self._searched = start
        # A key may be cut anywhere.
        self._searched = max(self._searched, len(self._line) - 64)
        return b""

    def _take_value(self, value: Base64Reader, part: bytes) -> bytes:
        """Read on in a value, and return what follows its closing quote."""
        end = self._closing_quote(part)
        if end < 0:
            value.feed(part)
            return b""
        value.feed(part[:end])
        image = self._without_copy(value.finish())
        self._known.add(image)
        self._count += 1
        name = f"{self._names}{self._count}"
        self.images[name] = image
        # What JSON does not allow in a string stays forbidden: the parser rejects the event, as without the tap.
        self._line += name.encode() if value.is_json else b"\0"
        self._value, self._searched = None, len(self._line)
        return part[end:]

    def _without_copy(self, image: ImageBytes) -> ImageBytes:
        if self._count < MAX_COPIES or image.data is None:
            return image
        key = image.size, image.checksum()
        if key in self._seen and len(self.images) >= MAX_COPIES:
            return ImageBytes(None, image.size, repeated=True)
        self._seen.add(key)
        return image

    def _closing_quote(self, part: bytes) -> int:
        """-1 where the value goes on."""
        end = part.find(b'"')
        while end >= 0 and self._is_escaped(part, end):
            end = part.find(b'"', end + 1)
        self._in_escape = end < 0 and part.endswith(b"\\") and not self._is_escaped(part, len(part) - 1)
        return end

    def _is_escaped(self, part: bytes, place: int) -> bool:
        """Whether the byte there follows an odd number of backslashes."""
        begin = place
        while begin and part[begin - 1] == ord("\\"):
            begin -= 1
        return (place - begin + (self._in_escape and begin == 0)) % 2 == 1
