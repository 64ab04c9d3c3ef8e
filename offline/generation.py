"""Responses being generated: one task each, its frames kept for any number of readers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from offline import state
from offline.events import TERMINAL, new_response, response_events
from offline.items import Output
from offline.request import ParsedRequest
from offline.request_log import RequestLog
from offline.state import Record, StoredImage
from offline.wire import Json, as_objects, encode, new_id

_MAX_UNSTORED = 50


@dataclass
class Server:
    """What one simulator holds in memory."""

    directory: Path
    speed: float
    generations: dict[str, "Generation"] = field(default_factory=dict[str, "Generation"])
    requests: RequestLog = field(default_factory=RequestLog)


class Generation:
    def __init__(self, root: Path, request: ParsedRequest, speed: float) -> None:
        self.root = root
        self.request = request
        self.conversation = request.conversation
        self.response = new_response(request.body, request.options)
        self.out = Output([], request.conversation.directives, speed)
        self.frames: list[bytes] = []
        self.task: asyncio.Task[None] | None = None
        self.stored = False
        self.finished = False
        self._changed = asyncio.Event()

    @property
    def id(self) -> str:
        return self.response["id"]

    @property
    def background(self) -> bool:
        return self.response["background"]

    def emit(self, event: Json) -> None:
        """Number the event and keep it; its place in `frames` is its true number."""
        number = len(self.frames)
        if "duplicate_seq" in self.conversation.directives:
            number //= 2
        numbered = event if "no_seq" in self.conversation.directives else {**event, "sequence_number": number}
        self.keep(f"event: {event['type']}\ndata: ".encode() + encode(numbered) + b"\n\n")

    def keep(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.wake()

    def wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def follow(self, start: int = 0) -> AsyncIterator[bytes]:
        """Frames from the `start`-th on, until the response has ended."""
        while True:
            while start < len(self.frames):
                yield self.frames[start]
                start += 1
            if self.finished:
                return
            await self._changed.wait()


def start_generation(server: Server, generation: Generation) -> None:
    server.generations[generation.id] = generation
    generation.task = asyncio.create_task(_generate(server, generation))


async def stop_generation(generation: Generation) -> None:
    """Stop generating; what was stored by then is what a client will find."""
    if generation.task and not generation.task.done():
        generation.task.cancel()
        await asyncio.wait({generation.task})


async def _generate(server: Server, generation: Generation) -> None:
    events = response_events(generation.response, generation.request, generation.out)
    try:
        await asyncio.to_thread(_begin, generation)
        async for event in events:
            if event["type"] in TERMINAL:
                # Before the client receives it: its next request may continue from here.
                await asyncio.to_thread(_store, generation)
            generation.emit(event)
            if event["type"] == "response.in_progress" and "garbage" in generation.conversation.directives:
                generation.keep(b"event: response.output_text.delta\ndata: {this is not JSON\n\n")
    except asyncio.CancelledError:
        generation.response["status"] = "cancelled"
    except Exception as error:  # the provider's own faults are reported as the real API reports its own
        generation.response |= {
            "status": "failed",
            "error": {"code": "server_error", "message": f"Offline simulator: {error}"},
        }
        generation.emit({"type": "response.failed", "response": generation.response})
    finally:
        # A client that leaves at this moment must not keep the response from being stored.
        await asyncio.shield(_end(server, generation))


async def _end(server: Server, generation: Generation) -> None:
    await asyncio.to_thread(_store, generation)
    generation.finished = True
    generation.wake()
    if generation.response["store"]:
        if generation.background:
            await asyncio.to_thread(state.save_frames, generation.root, generation.id, generation.frames)
        server.generations.pop(generation.id, None)
    elif not generation.background:
        server.generations.pop(generation.id, None)
    done = [other for other in server.generations.values() if other.finished]
    for old in done[:-_MAX_UNSTORED]:
        server.generations.pop(old.id, None)


def _begin(generation: Generation) -> None:
    if generation.response["store"] and generation.background:
        state.mark_running(generation.root, _record(generation, []))


def _store(generation: Generation) -> None:
    if generation.stored or not generation.response["store"]:
        return
    generation.stored = True
    uploads: list[str] = []
    for data in generation.conversation.uploads:
        uploads.append(new_id("up"))
        state.save_image(generation.root, uploads[-1], StoredImage(data, data))
    for name, image in generation.out.images.items():
        state.save_image(generation.root, name, image)
    state.save_record(generation.root, _record(generation, uploads))


def _record(generation: Generation, uploads: list[str]) -> Record:
    images = [*generation.conversation.stored, *uploads, *generation.out.images]
    calls = [item for item in as_objects(generation.response["output"]) if item["type"] == "function_call"]
    return Record(
        generation.response,
        images[-16:],
        generation.conversation.texts[-50:],
        {call["call_id"]: call["name"] for call in calls},
    )
