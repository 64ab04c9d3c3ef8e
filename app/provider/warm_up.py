"""A first turn at the start: the SDKs build their parsers when they first need them, which takes a second."""

import json
from typing import Any

import httpx2
from agents import Agent, ModelSettings, RunConfig, Runner
from agents.models.openai_responses import OpenAIResponsesModel
from openai import DefaultAsyncHttpxClient

from app.provider.wire import WireTapClient

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
_EVENTS: list[dict[str, Any]] = [
    {"type": "response.created", "response": _RESPONSE},
    {"type": "response.output_text.delta", "item_id": "msg_warm", "delta": "Warm.", "logprobs": []},
    {"type": "response.output_item.done", "item": _MESSAGE},
    {"type": "response.completed", "response": {**_RESPONSE, "output": [_MESSAGE]}},
]


async def warm_up() -> None:
    """One turn through the SDKs, answered in this process; nothing leaves it."""
    transport = httpx2.MockTransport(_answer)
    http_client = DefaultAsyncHttpxClient(transport=transport)
    async with WireTapClient(api_key="none", http_client=http_client) as client:
        model = OpenAIResponsesModel(model="warm", openai_client=client)
        agent = Agent[Any](name="warm", model=model, model_settings=ModelSettings(include_usage=True))
        streamed = Runner.run_streamed(agent, "Warm up.", run_config=RunConfig(tracing_disabled=True))
        async for _ in streamed.stream_events():
            pass


def _answer(request: httpx2.Request) -> httpx2.Response:
    numbered = enumerate(_EVENTS)
    lines = [f"data: {json.dumps({**event, 'sequence_number': at, 'output_index': 0})}\n\n" for at, event in numbered]
    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content="".join(lines).encode())
