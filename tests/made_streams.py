"""Streams of the provider made for one test: events of the Responses API, as few as the service needs."""

import base64
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

Json = dict[str, Any]


def stream_of(*parts: tuple[Json, list[Json]], response_id: str = "resp_made_0001") -> bytes:
    """A response's stream; each part is an output item and the events before it is done."""
    response = {"id": response_id, "object": "response", "created_at": 1795500000, "model": "gpt-6.1-sol"}
    response |= {"tools": [], "parallel_tool_calls": True, "tool_choice": "auto"}
    events = [_about(response, "created", "in_progress", [])]
    for index, (item, before) in enumerate(parts):
        begun: Json = {**item, "status": "in_progress", "result": None, "content": []}
        events.append({"type": "response.output_item.added", "output_index": index, "item": begun})
        events += [{**event, "item_id": item["id"], "output_index": index} for event in before]
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append(_about(response, "completed", "completed", [item for item, _ in parts]))
    return b"".join(_frames(events))


def text(pieces: Iterable[str], item_id: str = "msg_made") -> tuple[Json, list[Json]]:
    """A message whose text comes in these pieces."""
    pieces = list(pieces)
    content: list[Json] = [{"type": "output_text", "text": "".join(pieces), "annotations": []}]
    item: Json = {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": content}
    delta: Json = {"type": "response.output_text.delta", "content_index": 0, "logprobs": []}
    return item, [{**delta, "delta": piece} for piece in pieces]


def reasoning(summary: str, item_id: str = "rs_made") -> tuple[Json, list[Json]]:
    """Its summary comes in one piece."""
    item: Json = {"id": item_id, "type": "reasoning", "summary": [{"type": "summary_text", "text": summary}]}
    return item, [{"type": "response.reasoning_summary_text.delta", "summary_index": 0, "delta": summary}]


def image(data: bytes, item_id: str = "ig_made", **fields: Any) -> tuple[Json, list[Json]]:
    """`fields` are further ones of the item, such as `revised_prompt`."""
    result = base64.b64encode(data).decode()
    return {"id": item_id, "type": "image_generation_call", "status": "completed", "result": result, **fields}, []


def call(name: str, call_id: str = "call_made") -> tuple[Json, list[Json]]:
    item = {"id": f"fc_{call_id}", "type": "function_call", "status": "completed", "call_id": call_id}
    return {**item, "name": name, "arguments": "{}"}, []


def png(color: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def _about(response: Json, kind: str, status: str, output: list[Json]) -> Json:
    return {"type": f"response.{kind}", "response": {**response, "status": status, "output": output}}


def _frames(events: list[Json]) -> Iterator[bytes]:
    for number, event in enumerate(events):
        yield f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n".encode()
