"""The main job seen from outside: sign up, chat with the designer over SSE, save the picture."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx

from app.settings import Settings

PROMPT = "a gray tabby cat hugging an otter with an orange scarf"
START_SECONDS = 60.0
RETRY_LATER = 503


async def run(base_url: str, settings: Settings, prompt: str, *, offline: bool) -> bool:
    """Print what happens; True once a picture is stored and saved under `DATA_DIR`."""
    started = time.monotonic()
    async with httpx.AsyncClient(base_url=base_url, timeout=httpx.Timeout(30, read=300)) as client:
        await _until_ready(client)
        client.headers["Authorization"] = f"Bearer {await _sign_up(client)}"
        if offline:
            _say("No OPENAI_API_KEY is set: the offline provider draws a placeholder of your prompt.")
        _say(f"You: {prompt}")
        attachment = await _chat(client, prompt)
        if attachment is None:
            _say("No picture came.")
            return False
        content = await client.get(attachment["url"])
        content.raise_for_status()
    path = settings.data_dir / str(attachment["filename"])
    path.write_bytes(content.content)
    _say(f"\nSaved {path} ({attachment['width']}x{attachment['height']}, {attachment['size_bytes']:,} bytes)")
    _say(f"Link (works {settings.link_ttl_seconds} s while Easel runs): {attachment['url']}")
    _say(f"It took {time.monotonic() - started:.1f} s from the first request.")
    _say("\nNext: ./just dev serves the API on http://127.0.0.1:8000 (documentation under /docs);")
    _say("      OPENAI_API_KEY=... ./just demo draws with OpenAI.")
    return True


async def _until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                answer = await client.get("/readyz")
                if answer.status_code != RETRY_LATER:
                    answer.raise_for_status()
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)


async def _sign_up(client: httpx.AsyncClient) -> str:
    body = {
        "email": f"demo-{secrets.token_hex(6)}@example.com",
        "password": secrets.token_urlsafe(16),
        "tenant_name": "Demo",
    }
    response = await client.post("/v1/signup", json=body)
    response.raise_for_status()
    return str(response.json()["access_token"])


async def _chat(client: httpx.AsyncClient, prompt: str) -> dict[str, Any] | None:
    attachment: dict[str, Any] | None = None
    body = {"agent_key": "designer", "input": prompt}
    async with client.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as response:
        if response.is_error:
            await response.aread()
            _say(f"Easel refused: {response.json()['detail']}")
            return None
        async for event in _events(response):
            _tell(event)
            if event["type"] == "attachment.created":
                attachment = event["attachment"]
    return attachment


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _tell(event: dict[str, Any]) -> None:
    match event["type"]:
        case "message.started":
            print("Designer: ", end="", flush=True)  # noqa: T201
        case "text.delta":
            print(event["delta"], end="", flush=True)  # noqa: T201
        case "tool.started" | "tool.progress":
            _say(f"  … {event['name']}: {event['status'].replace('_', ' ')}")
        case "image.partial":
            _say(f"  … preview {event['index'] + 1}: {event['width']}x{event['height']} {event['mime_type']}")
        case "attachment.created":
            _say(f"  … stored as {event['attachment']['object_id']}")
        case "attachment.failed":
            _say(f"  … {event['detail']}")
        case "run.failed":
            _say(f"\nThe run failed: {event['error']['message']}")
        case _:
            pass


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
