"""A provider that answers with a stored stream, byte for byte, and what that stream holds."""

import base64
import io
import json
import random
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from tests.app_server import Event, kinds

CUTS = 200
TERMINAL = ("run.completed", "run.failed", "run.cancelled")
PARTIAL = "response.image_generation_call.partial_image"
WHOLE_TEXTS = ("response.output_text.done", "response.refusal.done")

Json = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """A stream as it was sent; `results` are the images of its last event, in base64."""

    name: str
    data: bytes
    events: list[Json] = field(repr=False)

    @property
    def text(self) -> str:
        return "\n\n".join(event.get("text") or event.get("refusal") or "" for event in self._of(*WHOLE_TEXTS))

    @property
    def results(self) -> list[str]:
        output: list[Json] = self.events[-1]["response"]["output"]
        return [item["result"] for item in output if item["type"] == "image_generation_call"]

    @property
    def partials(self) -> list[bytes]:
        return self._whole(event["partial_image_b64"] for event in self._of(PARTIAL))

    @property
    def images(self) -> list[bytes]:
        return self._whole(self.results)

    def count(self, *types: str) -> int:
        return len(self._of(*types))

    def _whole(self, texts: Iterable[str]) -> list[bytes]:
        return [data for text in texts if (data := _decode(text)) is not None]

    def _of(self, *wanted: str) -> list[Json]:
        return [event for event in self.events if event["type"] in wanted]


def _decode(text: str) -> bytes | None:
    """None for what a recorder has cut off."""
    try:
        data = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (ValueError, OSError):
        return None
    return data


def read_stream(path: Path, *, name: str = "") -> Stream:
    data = path.read_bytes()
    lines = [line.removeprefix(b"data: ") for line in data.splitlines() if line.startswith(b"data: ")]
    return Stream(name or path.stem, data, [json.loads(line) for line in lines if line != b"[DONE]"])


@dataclass
class StreamServer:
    url: str
    posts: list[str]


@contextmanager
def serving(*streams: bytes) -> Generator[StreamServer]:
    """A provider that answers with these in turn, then with the last; cut into pieces at random places."""
    seed = random.randrange(2**32)
    print(f"cut with random.Random({seed})")  # noqa: T201 - to repeat a failure
    posts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # every piece is a segment of its own

        def do_POST(self) -> None:
            data = streams[min(len(posts), len(streams) - 1)]
            posts.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            cuts = sorted(random.Random(seed).choices(range(len(data) + 1), k=CUTS))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                self.wfile.write(data[start:end])

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # waited for as it closes
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield StreamServer(f"http://127.0.0.1:{server.server_port}/v1", posts)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def assert_well_formed(events: list[Event]) -> None:
    """Numbered without gaps, one terminal event, and that is the last."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [kind for kind in kinds(events) if kind in TERMINAL] == kinds(events)[-1:]


def text_of(events: list[Event]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "text.delta")
