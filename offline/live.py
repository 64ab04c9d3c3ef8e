"""Responses being generated: one task each, its frames kept for any number of readers."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from offline import state
from offline.events import TERMINAL, new_response, perform
from offline.items import Output
from offline.journal import Journal
from offline.prepare import Ready
from offline.state import Picture, Record
from offline.wire import Json, as_objects, encode, new_id

_MAX_UNSTORED = 50


@dataclass
class Studio:
    """Everything one provider knows while it runs."""

    directory: Path
    pace: float
    runs: dict[str, "Run"] = field(default_factory=dict[str, "Run"])
    requests: Journal = field(default_factory=Journal)


class Run:
    def __init__(self, root: Path, ready: Ready, pace: float) -> None:
        self.root = root
        self.ready = ready
        self.said = ready.said
        self.response = new_response(ready.body, ready.options)
        self.out = Output([], ready.said.directives, pace)
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
        if "duplicate_seq" in self.said.directives:
            number //= 2
        numbered = event if "no_seq" in self.said.directives else {**event, "sequence_number": number}
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


def start_run(studio: Studio, run: Run) -> None:
    studio.runs[run.id] = run
    run.task = asyncio.create_task(_generate(studio, run))


async def stop_run(run: Run) -> None:
    """Stop generating; what was stored by then is what a client will find."""
    if run.task and not run.task.done():
        run.task.cancel()
        await asyncio.wait({run.task})


async def _generate(studio: Studio, run: Run) -> None:
    events = perform(run.response, run.ready, run.out)
    try:
        await asyncio.to_thread(_begin, run)
        async for event in events:
            if event["type"] in TERMINAL:
                # Before the client hears of it: its next request may continue from here.
                await asyncio.to_thread(_store, run)
            run.emit(event)
            if event["type"] == "response.in_progress" and "garbage" in run.said.directives:
                run.keep(b"event: response.output_text.delta\ndata: {this is not JSON\n\n")
    except asyncio.CancelledError:
        run.response["status"] = "cancelled"
    except Exception as error:  # the provider's own faults are told as the real one tells its own
        run.response |= {"status": "failed", "error": {"code": "server_error", "message": f"Offline provider: {error}"}}
        run.emit({"type": "response.failed", "response": run.response})
    finally:
        # A client that leaves at this moment must not keep the response from being stored.
        await asyncio.shield(_end(studio, run))


async def _end(studio: Studio, run: Run) -> None:
    await asyncio.to_thread(_store, run)
    run.finished = True
    run.wake()
    if run.response["store"]:
        if run.background:
            await asyncio.to_thread(state.save_frames, run.root, run.id, run.frames)
        studio.runs.pop(run.id, None)
    elif not run.background:
        studio.runs.pop(run.id, None)
    done = [other for other in studio.runs.values() if other.finished]
    for old in done[:-_MAX_UNSTORED]:
        studio.runs.pop(old.id, None)


def _begin(run: Run) -> None:
    if run.response["store"] and run.background:
        state.mark_running(run.root, _record(run, []))


def _store(run: Run) -> None:
    if run.stored or not run.response["store"]:
        return
    run.stored = True
    uploads: list[str] = []
    for data in run.said.uploads:
        uploads.append(new_id("up"))
        state.save_picture(run.root, uploads[-1], Picture(data, data))
    for name, picture in run.out.pictures.items():
        state.save_picture(run.root, name, picture)
    state.save_record(run.root, _record(run, uploads))


def _record(run: Run, uploads: list[str]) -> Record:
    pictures = [*run.said.stored, *uploads, *run.out.pictures]
    calls = [item for item in as_objects(run.response["output"]) if item["type"] == "function_call"]
    return Record(run.response, pictures[-16:], run.said.texts[-50:], {call["call_id"]: call["name"] for call in calls})
