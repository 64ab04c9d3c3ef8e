"""Recorded streams of the real provider through the whole service; skipped where the recordings are not there."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.app_server import kinds, one, running_server
from tests.servers import s3_server
from tests.stream_server import Stream, assert_well_formed, read_stream, serving, text_of

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "recordings"
# What our agents have no tool for, or what the provider itself ended: the code of the failed run.
FAILURES = {
    "prism-stream-tools": "max_turns_exceeded",
    "pydantic-stream-text-tools-1": "max_turns_exceeded",
    "rig-stream-incomplete": "upstream_incomplete",
    "vercel-stream-error-insufficient-quota": "upstream_quota",
}


def _recordings(*, with_images: bool) -> list[Any]:
    found = [read_stream(path, name=path.parent.name) for path in sorted(RECORDINGS.glob("*/response.sse"))]
    chosen = [recording for recording in found if bool(recording.results) == with_images]
    if chosen:
        return [pytest.param(recording, id=recording.name) for recording in chosen]
    reason = "there are no recordings beside the project, in ../shared/recordings"
    return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]


def _with_cut_off_item(recording: Stream) -> bytes:
    """The stream with one letter for the result of each finished item; its last event is untouched."""
    lines = recording.data.split(b"\n")
    for place, line in enumerate(lines):
        if line.startswith(b'data: {"type":"response.output_item.done"') and b'"result":"' in line:
            event = json.loads(line.removeprefix(b"data: "))
            event["item"]["result"] = "i"
            lines[place] = b"data: " + json.dumps(event).encode()
    return b"\n".join(lines)


@pytest.mark.parametrize("recording", _recordings(with_images=False))
def test_a_recorded_answer_reads_as_it_was_sent(recording: Stream, database_url: str, tmp_path: Path) -> None:
    with serving(recording.data) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        events = ada.ask("Say it again")
        assert_well_formed(events)
        assert text_of(events) == recording.text
        if code := FAILURES.get(recording.name):
            assert one(events, "run.failed")["error"]["code"] == code
        else:
            assert kinds(events)[-2:] == ["message.completed", "run.completed"]
            assert one(events, "message.completed")["message"]["text"] == recording.text
        # The model is told that it has no such tool; this one then says the same again.
        assert (len(provider.posts) == 1) == (code != "max_turns_exceeded")


@pytest.mark.slow
@pytest.mark.parametrize("recording", _recordings(with_images=True))
def test_a_recorded_image_is_stored_once(recording: Stream, database_url: str, tmp_path: Path) -> None:
    with s3_server(tmp_path / "s3") as s3, serving(recording.data) as provider:
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        settings: dict[str, Any] = {"storage_provider": "minio", "minio_endpoint": s3.endpoint, **minio}
        with running_server(database_url, provider.url, tmp_path, **settings) as server:
            events = server.sign_up("Ada's").draw("Draw it again")
    assert_well_formed(events)
    assert kinds(events)[-2:] == ["message.completed", "run.completed"]
    assert text_of(events) == recording.text
    assert kinds(events).count("image.partial") == len(recording.partials)
    assert kinds(events).count("tool.started") == kinds(events).count("tool.completed") == len(recording.results)
    created = [event["attachment"] for event in events if event["type"] == "attachment.created"]
    expected = sorted(hashlib.sha256(image).hexdigest() for image in recording.images)
    assert sorted(attachment["sha256"] for attachment in created) == expected
    failed = [event["code"] for event in events if event["type"] == "attachment.failed"]
    assert failed == ["image_unreadable"] * (len(recording.results) - len(recording.images))
    files = [path for path in (tmp_path / "s3").rglob("*") if path.is_file() and "images" in path.parts]
    assert sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files) == expected
    # The facts agree; each link is made anew.
    shown = one(events, "message.completed")["message"]["attachments"]
    assert [image["object_id"] for image in shown if image["status"] == "stored"] == [
        image["object_id"] for image in created
    ]
    assert provider.posts == ["/v1/responses"]


@pytest.mark.parametrize("recording", _recordings(with_images=True))
def test_the_last_event_completes_an_image_that_was_cut_off_before(
    recording: Stream, database_url: str, tmp_path: Path
) -> None:
    cut_off = _with_cut_off_item(recording)
    assert cut_off != recording.data
    with serving(cut_off) as provider, running_server(database_url, provider.url, tmp_path) as server:
        events = server.sign_up("Ada's").draw("Draw it again")
    assert_well_formed(events)
    created = [event["attachment"]["sha256"] for event in events if event["type"] == "attachment.created"]
    assert created == [hashlib.sha256(image).hexdigest() for image in recording.images]
    assert kinds(events).count("attachment.failed") == len(recording.results) - len(recording.images)
