"""A first turn at the start: the SDKs build their parsers when they first need them, which takes a second."""

import json
from typing import Any

import httpx2
from agents import Agent, ModelSettings, RunConfig, Runner
from agents.models.openai_responses import OpenAIResponsesModel
from openai import DefaultAsyncHttpxClient
from openai.types.responses import ResponseCompletedEvent

from app.provider.requests import ResponsesClient
from app.provider.usage import report_of

_MESSAGE: dict[str, Any] = {
    "id": "msg_warm",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Warm.", "annotations": []}],
}
_RESPONSE: dict[str, Any] = {
    "id": "resp_warm",
    "object": "response",
    "created_at": 0,
    "model": "warm",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
_IMAGE: dict[str, Any] = {"id": "ig_warm", "type": "image_generation_call", "status": "completed", "result": "V2FybQ=="}
_USAGE: dict[str, Any] = {
    "input_tokens": 1,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 1,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 2,
}
# Every type that a turn with an image has: the first of each takes up to 60 ms, in which the event loop stands still.
_EVENTS: list[dict[str, Any]] = [
    {"type": "response.created", "response": _RESPONSE},
    {"type": "response.in_progress", "response": _RESPONSE},
    {"type": "response.output_item.added", "item": {**_IMAGE, "status": "in_progress", "result": None}},
    {"type": "response.image_generation_call.in_progress", "item_id": "ig_warm"},
    {"type": "response.image_generation_call.generating", "item_id": "ig_warm"},
    {
        "type": "response.image_generation_call.partial_image",
        "item_id": "ig_warm",
        "partial_image_index": 0,
        "partial_image_b64": "V2FybQ==",
    },
    {"type": "response.image_generation_call.completed", "item_id": "ig_warm"},
    {"type": "response.output_item.done", "item": _IMAGE},
    {"type": "response.content_part.added", "item_id": "msg_warm", "part": _MESSAGE["content"][0]},
    {"type": "response.output_text.delta", "item_id": "msg_warm", "delta": "Warm.", "logprobs": []},
    {"type": "response.output_text.done", "item_id": "msg_warm", "text": "Warm.", "logprobs": []},
    {"type": "response.content_part.done", "item_id": "msg_warm", "part": _MESSAGE["content"][0]},
    {"type": "response.output_item.done", "item": _MESSAGE},
    {"type": "response.completed", "response": {**_RESPONSE, "output": [_IMAGE, _MESSAGE], "usage": _USAGE}},
]


async def warm_up() -> None:
    """One turn through the SDKs, answered in this process; nothing leaves it."""
    transport = httpx2.MockTransport(_answer)
    http_client = DefaultAsyncHttpxClient(transport=transport)
    async with ResponsesClient(api_key="none", http_client=http_client) as client:
        model = OpenAIResponsesModel(model="warm", openai_client=client)
        agent = Agent[Any](name="warm", model=model, model_settings=ModelSettings(include_usage=True))
        streamed = Runner.run_streamed(agent, "Warm up.", run_config=RunConfig(tracing_disabled=True))
        async for event in streamed.stream_events():
            if event.type == "raw_response_event" and isinstance(event.data, ResponseCompletedEvent):
                report_of(event.data.response, ())


def _answer(request: httpx2.Request) -> httpx2.Response:
    numbered = enumerate(_EVENTS)
    lines = [
        f"data: {json.dumps({'sequence_number': at, 'output_index': 0, 'content_index': 0, **event})}\n\n"
        for at, event in numbered
    ]
    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content="".join(lines).encode())
