"""What providers really sent, played through the whole service; the recordings lie beside the project, or nowhere."""

import base64
import hashlib
import io
import json
import random
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.app_server import Event, kinds, one, running_server
from tests.servers import s3_server

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "recordings"
CUTS = 200
TERMINAL = ("run.completed", "run.failed", "run.cancelled")
WHOLE_TEXTS = ("response.output_text.done", "response.refusal.done")
# What our agents have no tool for, or what the provider itself ended: the code of the failed run.
FAILURES = {
    "prism-stream-tools": "model_misbehaved",
    "pydantic-stream-text-tools-1": "model_misbehaved",
    "rig-stream-incomplete": "upstream_incomplete",
    "vercel-stream-error-insufficient-quota": "upstream_quota",
}

Json = dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """A stream as it was sent; `results` are the base64 of the pictures that its last event holds."""

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
    def previews(self) -> int:
        """How many previews are whole."""
        partials = self._of("response.image_generation_call.partial_image")
        return sum(_picture(partial["partial_image_b64"]) is not None for partial in partials)

    @property
    def pictures(self) -> list[bytes]:
        return [picture for result in self.results if (picture := _picture(result)) is not None]

    def _of(self, *wanted: str) -> list[Json]:
        return [event for event in self.events if event["type"] in wanted]


def _picture(text: str) -> bytes | None:
    """None for what a recorder has cut off."""
    try:
        data = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (ValueError, OSError):
        return None
    return data


def _read(path: Path) -> Recording:
    data = path.read_bytes()
    lines = [line.removeprefix(b"data: ") for line in data.splitlines() if line.startswith(b"data: ")]
    return Recording(path.parent.name, data, [json.loads(line) for line in lines if line != b"[DONE]"])


def _recordings(*, with_pictures: bool) -> list[Any]:
    found = [_read(path) for path in sorted(RECORDINGS.glob("*/response.sse"))]
    chosen = [recording for recording in found if bool(recording.results) == with_pictures]
    if chosen:
        return [pytest.param(recording, id=recording.name) for recording in chosen]
    reason = "there are no recordings beside the project, in ../shared/recordings"
    return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]


def _with_cut_off_item(recording: Recording) -> bytes:
    """The stream with one letter for the result of each finished item; its last event is untouched."""
    lines = recording.data.split(b"\n")
    for place, line in enumerate(lines):
        if line.startswith(b'data: {"type":"response.output_item.done"') and b'"result":"' in line:
            event = json.loads(line.removeprefix(b"data: "))
            event["item"]["result"] = "i"
            lines[place] = b"data: " + json.dumps(event).encode()
    return b"\n".join(lines)


@dataclass
class Player:
    url: str
    posts: list[str]


@contextmanager
def playing(data: bytes) -> Generator[Player]:
    """A provider that answers everything with `data`, cut into pieces at random places."""
    seed = random.randrange(2**32)
    print(f"cut with random.Random({seed})")  # noqa: T201 - to repeat a failure
    cuts = sorted(random.Random(seed).choices(range(len(data) + 1), k=CUTS))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    posts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # every piece is a segment of its own

        def do_POST(self) -> None:
            posts.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # waited for as it closes
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Player(f"http://127.0.0.1:{server.server_port}/v1", posts)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def assert_well_formed(events: list[Event]) -> None:
    """Numbered without gaps, one terminal event, and that is the last."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [kind for kind in kinds(events) if kind in TERMINAL] == kinds(events)[-1:]


def said(events: list[Event]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "text.delta")


@pytest.mark.parametrize("recording", _recordings(with_pictures=False))
def test_a_recorded_answer_reads_as_it_was_sent(recording: Recording, database_url: str, tmp_path: Path) -> None:
    with playing(recording.data) as player, running_server(database_url, player.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        events = ada.ask("Say it again")
        assert_well_formed(events)
        assert said(events) == recording.text
        if code := FAILURES.get(recording.name):
            assert one(events, "run.failed")["error"]["code"] == code
        else:
            assert kinds(events)[-2:] == ["message.completed", "run.completed"]
            assert one(events, "message.completed")["message"]["text"] == recording.text
        assert player.posts == ["/v1/responses"]


@pytest.mark.parametrize("recording", _recordings(with_pictures=True))
def test_a_recorded_picture_is_stored_once(recording: Recording, database_url: str, tmp_path: Path) -> None:
    with s3_server(tmp_path / "s3") as s3, playing(recording.data) as player:
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        settings: dict[str, Any] = {"storage_provider": "minio", "minio_endpoint": s3.endpoint, **minio}
        with running_server(database_url, player.url, tmp_path, **settings) as server:
            events = server.sign_up("Ada's").draw("Draw it again")
    assert_well_formed(events)
    assert kinds(events)[-2:] == ["message.completed", "run.completed"]
    assert said(events) == recording.text
    assert kinds(events).count("image.partial") == recording.previews
    assert kinds(events).count("tool.started") == kinds(events).count("tool.completed") == len(recording.results)
    created = [event["attachment"] for event in events if event["type"] == "attachment.created"]
    expected = sorted(hashlib.sha256(picture).hexdigest() for picture in recording.pictures)
    assert sorted(attachment["sha256"] for attachment in created) == expected
    failed = [event["code"] for event in events if event["type"] == "attachment.failed"]
    assert failed == ["image_unreadable"] * (len(recording.results) - len(recording.pictures))
    files = [path for path in (tmp_path / "s3").rglob("*") if path.is_file() and "images" in path.parts]
    assert sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files) == expected
    # The facts agree; each link is made anew.
    shown = one(events, "message.completed")["message"]["attachments"]
    assert [picture["object_id"] for picture in shown] == [picture["object_id"] for picture in created]
    assert player.posts == ["/v1/responses"]


@pytest.mark.parametrize("recording", _recordings(with_pictures=True))
def test_the_last_event_makes_good_a_picture_cut_off_before(
    recording: Recording, database_url: str, tmp_path: Path
) -> None:
    cut_off = _with_cut_off_item(recording)
    assert cut_off != recording.data
    with playing(cut_off) as player, running_server(database_url, player.url, tmp_path) as server:
        events = server.sign_up("Ada's").draw("Draw it again")
    assert_well_formed(events)
    created = [event["attachment"]["sha256"] for event in events if event["type"] == "attachment.created"]
    assert created == [hashlib.sha256(picture).hexdigest() for picture in recording.pictures]
    assert kinds(events).count("attachment.failed") == len(recording.results) - len(recording.pictures)
