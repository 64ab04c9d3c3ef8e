"""What stands beside Easel and speaks HTTP: `python -m tests.bench.baselines NAME PORT PROVIDER_URL`.

Each answers `POST /v1/runs` with the run's text as events and keeps nothing; `raw` has one event stream for all readers
of any run, too.
"""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from agents import Agent, RunConfig, Runner
from agents.models.openai_responses import OpenAIResponsesModel
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI

from tests.bench import bare, streams

Text = Callable[[AsyncOpenAI, str], AsyncGenerator[str]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

_OK: dict[str, Any] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream")],
}
FAN_OUT_RATE = 25
_FANNED_OUT = b'id: %d\nevent: text.delta\ndata: {"type":"text.delta","seq":%d,"run_id":"%036d","delta":"%s"}\n\n'


def proxy(provider_url: str, text_of: Text) -> FastAPI:
    app, client = bare.app, AsyncOpenAI(api_key="none", base_url=f"{provider_url}/v1", max_retries=0)

    @app.post("/v1/runs")
    async def run(request: Request) -> StreamingResponse:  # pyright: ignore[reportUnusedFunction]
        text = (await request.json())["input"]
        return StreamingResponse(_frames(text_of(client, text)), media_type="text/event-stream")

    return app


async def _frames(texts: AsyncGenerator[str]) -> AsyncGenerator[str]:
    async for text in texts:
        yield f"data: {json.dumps({'type': 'text.delta', 'delta': text})}\n\n"
    yield f"data: {json.dumps({'type': 'run.completed'})}\n\n"


async def of_openai(client: AsyncOpenAI, text: str) -> AsyncGenerator[str]:
    async for event in await client.responses.create(model="gpt-6.1-sol", input=text, stream=True):
        if event.type == "response.output_text.delta":
            yield event.delta


async def of_agents(client: AsyncOpenAI, text: str) -> AsyncGenerator[str]:
    model = OpenAIResponsesModel(model="gpt-6.1-sol", openai_client=client)
    agent = Agent[Any](name="plain", model=model)
    streamed = Runner.run_streamed(agent, text, run_config=RunConfig(tracing_disabled=True))
    async for event in streamed.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            yield event.data.delta


class Raw:
    """An ASGI app that reads nothing: what the provider sends goes on as it is."""

    def __init__(self, provider_url: str) -> None:
        place = urlsplit(provider_url)
        self._host, self._port = place.hostname or "", place.port
        self._next: asyncio.Future[bytes] | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send(_OK)
        if scope["path"] == "/v1/runs":
            await self._forward(await _body(receive), send)
        elif scope["path"].endswith("/events"):
            await self._fan_out(send)
        await send({"type": "http.response.body", "body": b""})

    async def _forward(self, body: bytes, send: Send) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(b"POST /v1/responses HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await reader.readuntil(b"\r\n\r\n")
        while size := int(await reader.readline(), 16):
            await send({"type": "http.response.body", "body": await reader.readexactly(size), "more_body": True})
            await reader.readexactly(2)
        writer.close()
        await send({"type": "http.response.body", "body": b'data: {"type":"run.completed"}\n\n', "more_body": True})

    async def _fan_out(self, send: Send) -> None:
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())
        # uvloop's error for a reader that has left.
        with suppress(RuntimeError):
            while True:
                event = await asyncio.shield(self._upcoming())
                await send({"type": "http.response.body", "body": event, "more_body": True})

    def _upcoming(self) -> asyncio.Future[bytes]:
        if self._next is None or self._next.done():
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    async def _tick(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(1 / FAN_OUT_RATE)
            number += 1
            data = _FANNED_OUT % (number, number, 0, streams.stamped().encode())
            self._upcoming().set_result(data)


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def main() -> None:
    name, port, provider_url = sys.argv[1:]
    apps: dict[str, Callable[[], Any]] = {
        "openai": lambda: proxy(provider_url, of_openai),
        "agents": lambda: proxy(provider_url, of_agents),
        "raw": lambda: Raw(provider_url),
    }
    uvicorn.run(apps[name](), host="127.0.0.1", port=int(port), log_config=None, access_log=False)


if __name__ == "__main__":
    main()
