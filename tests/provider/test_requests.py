"""What the provider is sent is what the plain SDK sends, though its items are not looked through."""

import json
from typing import Any, cast

import httpx2
import pytest
from openai import AsyncOpenAI
from openai.resources.responses import responses
from openai.types.responses import ResponseOutputMessage

from app.provider.requests import ResponsesClient

TOOLS: list[Any] = [
    {"type": "image_generation", "size": "1024x1024", "partial_images": 2},
    {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": True},
]
ASKED: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "Draw a house"}]}]
ANSWER = ResponseOutputMessage(id="msg_1", type="message", role="assistant", status="completed", content=[])


@pytest.mark.parametrize(
    "given",
    [
        {"input": ASKED, "tools": TOOLS},
        {"input": "Draw a house"},
        {"input": [*ASKED, ANSWER], "tools": []},
        {"input": ASKED, "tools": TOOLS, "extra_body": {"tools": TOOLS[:1], "seed": 7}},
    ],
    ids=["items and tools", "a text", "an item of the SDK's", "a body of one's own"],
)
async def test_a_request_is_the_sdks(given: dict[str, Any]) -> None:
    assert await sent_by(ResponsesClient, given) == await sent_by(AsyncOpenAI, given)


async def test_the_sdk_does_not_look_through_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    transform = cast(Any, responses).async_maybe_transform

    async def look(data: dict[str, Any], expected_type: object) -> Any:
        seen.append(data)
        return await transform(data, expected_type)

    monkeypatch.setattr(responses, "async_maybe_transform", look)
    body = await sent_by(ResponsesClient, {"input": ASKED, "tools": TOOLS})
    assert (body["input"], body["tools"]) == (ASKED, TOOLS)
    assert not [value for data in seen for value in data.values() if value in (ASKED, TOOLS)]


async def sent_by(kind: type[AsyncOpenAI], given: dict[str, Any]) -> dict[str, Any]:
    sent: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(request.read())
        return httpx2.Response(200, content=b"data: [DONE]\n\n", headers={"content-type": "text/event-stream"})

    http_client = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    async with (
        kind(api_key="none", http_client=http_client) as client,
        client.responses.with_streaming_response.create(model="gpt-5", stream=True, **given) as response,
    ):
        await response.read()
    return json.loads(sent[0])
