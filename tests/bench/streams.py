"""The bytes of the provider's streams that the bench replays, made of nothing but numbers."""

import base64
import json
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from tests.bench import pixels

Json = dict[str, Any]

_PLACE = "@base64@"
_DELTA = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,'
    b'"item_id":"msg_%d","output_index":%d,"content_index":0,"delta":"%s","logprobs":[],"obfuscation":"x7Qp2LmKw"}\n\n'
)

# The sizes in bytes are about those of the names.
FINALS: dict[str, Callable[[], bytes]] = {
    "3MB": partial(pixels.noise, 1024, 0),
    "1.6MB": partial(pixels.drawing, 1024, 0),
    "400KB": partial(pixels.noise, 512, 0, all_bits=False),
}
PREVIEWS = {"3MB": 3, "1.6MB": 0, "400KB": 0}


def begin(number: int) -> bytes:
    response = _response(number, "in_progress", [])
    return _event("response.created", 0, response=response) + _event("response.in_progress", 1, response=response)


def message_begin(number: int, index: int = 0) -> bytes:
    item: Json = {"id": f"msg_{number}", "type": "message", "status": "in_progress", "content": [], "role": "assistant"}
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": ""}
    place = {"item_id": f"msg_{number}", "output_index": index, "content_index": 0}
    return _event("response.output_item.added", 2, output_index=index, item=item) + _event(
        "response.content_part.added", 3, **place, part=part
    )


def stamped() -> str:
    """The text of a delta: when it was sent, on the clock that all processes of a machine share."""
    return f"{time.monotonic():.6f} "


def delta(number: int, at: int, text: str, index: int = 0) -> bytes:
    return _DELTA % (at, number, index, text.encode())


def end(number: int, at: int, text: str, images: list[Json]) -> bytes:
    """From the end of the message to the end of the response, whose output holds `images` once more."""
    index = len(images)
    place = {"item_id": f"msg_{number}", "output_index": index, "content_index": 0}
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    item: Json = {
        "id": f"msg_{number}",
        "type": "message",
        "status": "completed",
        "content": [part],
        "role": "assistant",
    }
    return b"".join(
        [
            _event("response.output_text.done", at, **place, text=text, logprobs=[]),
            _event("response.content_part.done", at + 1, **place, part=part),
            _event("response.output_item.done", at + 2, output_index=index, item=item),
            _event("response.completed", at + 3, response=_response(number, "completed", [*images, item])),
        ]
    )


def image_turn(number: int, size: str) -> list[bytes]:
    """The whole response in pieces: previews, the final image, a short text, and the final image once more."""
    call: Json = {"id": f"ig_{number}", "type": "image_generation_call", "status": "completed", "action": "generate"}
    call |= {"background": "opaque", "output_format": "png", "quality": "high", "size": "1024x1024"}
    call |= {"result": _PLACE, "revised_prompt": "A house beside a river."}
    place = {"output_index": 0, "item_id": f"ig_{number}"}
    kind = "response.image_generation_call"
    pieces = [begin(number), _event("response.output_item.added", 2, output_index=0, item={**call, "result": None})]
    pieces += [_event(f"{kind}.in_progress", 3, **place), _event(f"{kind}.generating", 4, **place)]
    for index in range(PREVIEWS[size]):
        preview = {"partial_image_index": index, "partial_image_b64": _PLACE, "output_format": "png"}
        pieces += _filled(_event(f"{kind}.partial_image", 5 + index, **place, **preview), _preview(index))
    pieces.append(_event(f"{kind}.completed", 9, **place))
    pieces += _filled(_event("response.output_item.done", 10, output_index=0, item=call), _base64(size))
    pieces += [message_begin(number, 1), *(delta(number, 11 + at, "word ", 1) for at in range(6))]
    return pieces + _filled(end(number, 20, "word " * 6, [call]), _base64(size))


def _filled(event: bytes, base64_text: bytes) -> list[bytes]:
    """In three pieces, as copying megabytes for each response would slow the provider down."""
    before, after = event.split(_PLACE.encode())
    return [before, base64_text, after]


def bytes_of_final(size: str) -> int:
    """Decoded."""
    return len(_final(size))


@cache
def _base64(size: str) -> bytes:
    return base64.b64encode(_final(size))


@cache
def _preview(index: int) -> bytes:
    return base64.b64encode(pixels.noise(1024, index + 1, all_bits=False))


@cache
def _final(size: str) -> bytes:
    return FINALS[size]()


def _response(number: int, status: str, output: list[Json]) -> Json:
    usage = {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 41}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 141}
    fields = {"error": None, "incomplete_details": None, "instructions": "Be brief.", "max_output_tokens": None}
    fields |= {"parallel_tool_calls": True, "previous_response_id": None, "store": True, "temperature": 1.0}
    fields |= {"tool_choice": "auto", "tools": [], "top_p": 1.0, "truncation": "disabled", "metadata": {}}
    ids = {"id": f"resp_{number}", "object": "response", "created_at": 1795500000, "status": status}
    return {**ids, "model": "gpt-6.1-sol", "output": output, **fields, "usage": usage if output else None}


def _event(kind: str, at: int, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, "sequence_number": at, **fields}, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()
