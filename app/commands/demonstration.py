"""The main job seen from outside: sign up, chat with the designer over SSE, save the image."""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager

import httpx

from app.attachments.schemas import AttachmentView
from app.embedded import Parts
from app.listening import bound
from app.loading import load
from app.runs.events import (
    AttachmentCreated,
    AttachmentFailed,
    Event,
    ImagePartial,
    RunCancelled,
    RunCompleted,
    RunFailed,
    TextDelta,
    ToolProgress,
    ToolStarted,
    read_event,
)
from app.server import Server
from app.settings import Settings

START_SECONDS = 60.0
RETRY_LATER = 503


def demonstrate(settings: Settings, parts: Parts, prompt: str) -> bool:
    """Print what happens and save the image under `DATA_DIR`; False where the run failed."""
    if settings.database_url is not None:
        asyncio.run(load("app.migrate").migrate(parts.database_url))
    with _serving(settings, parts) as base_url:
        return asyncio.run(_demonstrate(base_url, settings, prompt, offline=parts.offline))


@contextmanager
def _serving(settings: Settings, parts: Parts) -> Generator[str]:
    """A server on a free port in a thread, for as long as the block lasts; raises what its start failed with."""
    started = threading.Event()
    failures: list[Exception] = []
    with bound("127.0.0.1", 0) as sockets:
        port = sockets[0].getsockname()[1]
        server = Server(settings, parts, host="127.0.0.1", port=port, on_started=started.set)

        def serve() -> None:
            try:
                server.run(sockets)
            except Exception as error:
                failures.append(error)
            started.set()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        started.wait(START_SECONDS)
        if failures:
            raise failures[0]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.leave()
            thread.join(10)


async def _demonstrate(base_url: str, settings: Settings, prompt: str, *, offline: bool) -> bool:
    started = time.monotonic()
    # Our own server: no proxy of the environment is asked, and none of its kinds has to be installed.
    timeout = httpx.Timeout(30, read=300)
    async with httpx.AsyncClient(base_url=base_url, timeout=timeout, trust_env=False) as client:
        await _until_ready(client)
        client.headers["Authorization"] = f"Bearer {await _sign_up(client)}"
        if offline:
            _say("No OPENAI_API_KEY is set: the offline simulator draws a placeholder of your prompt.")
        _say(f"You: {prompt}")
        transcript = await _chat(client, prompt)
        if not transcript.completed:
            return False
        for image in transcript.images:
            content = await client.get(str(image.url))
            content.raise_for_status()
            path = settings.data_dir / image.filename
            path.write_bytes(content.content)
            _say(f"\nSaved {path} ({image.width}x{image.height}, {image.size_bytes:,} bytes)")
    if not transcript.images:
        _say("\nThe designer answered without an image.")
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


async def _chat(client: httpx.AsyncClient, prompt: str) -> "Transcript":
    transcript = Transcript()
    body = {"agent_key": "designer", "input": prompt}
    async with client.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as response:
        if response.is_error:
            await response.aread()
            _say(f"Easel refused: {response.json()['detail']}")
            return transcript
        async for event in _events(response):
            transcript.add(event)
    return transcript


async def _events(response: httpx.Response) -> AsyncIterator[Event]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield read_event(line.removeprefix("data: "))


class Transcript:
    """Prints a run's events as they come; what arrives amid a sentence is printed when the sentence has ended."""

    def __init__(self) -> None:
        self.images: list[AttachmentView] = []
        self.completed = False
        self._in_text = False
        self._waiting: list[str] = []

    def add(self, event: Event) -> None:
        match event:
            case TextDelta():
                self._write(event.delta)
            case ToolStarted() | ToolProgress():
                self._end_text()
                self._note(f"{event.name}: {event.status.replace('_', ' ')}")
            case ImagePartial():
                self._note(f"preview {event.index + 1}: {event.width}x{event.height} {event.mime_type}")
            case AttachmentCreated():
                self.images.append(event.attachment)
                self._note(f"stored as {event.attachment.object_id}")
            case AttachmentFailed():
                self._note(event.detail)
            case RunCompleted():
                self._end_text()
                self.completed = True
            case RunFailed() | RunCancelled():
                self._end_text()
                reason = event.run.error.message if event.run.error else "no reason was given"
                _say(f"\nThe run {event.run.status}: {reason}")
            case _:
                pass

    def _write(self, delta: str) -> None:
        print(delta if self._in_text else f"Designer: {delta}", end="", flush=True)  # noqa: T201
        self._in_text = True

    def _note(self, line: str) -> None:
        self._waiting.append(line)
        if not self._in_text:
            self._print_notes()

    def _end_text(self) -> None:
        if self._in_text:
            _say("")
        self._in_text = False
        self._print_notes()

    def _print_notes(self) -> None:
        for line in self._waiting:
            _say(f"  … {line}")
        self._waiting.clear()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201
