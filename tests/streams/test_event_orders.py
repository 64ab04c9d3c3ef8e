"""The orders in which the provider sends an image, as small streams written by hand, through the whole service."""

import hashlib
import json
from pathlib import Path

import pytest

from app.provider import image_bytes
from tests.app_server import kinds, one, running_server
from tests.stream_server import PARTIAL, Stream, assert_well_formed, read_stream, serving, text_of

COMPLETED = "response.image_generation_call.completed"

STREAMS = {path.stem: read_stream(path) for path in sorted(Path(__file__).parent.glob("*.sse"))}

# What each stream is there for: its partial images, whether it says that the image is completed, the status of the
# finished item, its keepalive frames.
ORDERS = {
    "no-partials": (0, True, "completed", 0),
    "partials": (2, True, "completed", 0),
    "unrequested-partial": (1, False, "generating", 0),
    "keepalives": (1, True, "completed", 6),
}


def test_each_stream_has_the_order_it_is_named_after() -> None:
    found = {
        name: (stream.count(PARTIAL), stream.count(COMPLETED) == 1, _status(stream), stream.count("keepalive"))
        for name, stream in STREAMS.items()
    }
    assert found == ORDERS


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_text_partial_images_and_the_attachment_arrive(stream: Stream, database_url: str, tmp_path: Path) -> None:
    (image,) = stream.images
    with serving(stream.data) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        events = ada.draw("Draw it again", image={"partial_images": 0})
        partials = [ada.http.get(event["url"]).content for event in events if event["type"] == "image.partial"]
        attachment = one(events, "attachment.created")["attachment"]
        content = ada.http.get(attachment["url"]).content
    assert_well_formed(events)
    assert text_of(events) == stream.text != ""
    assert partials == stream.partials
    assert content == image
    assert (attachment["status"], attachment["sha256"]) == ("stored", hashlib.sha256(image).hexdigest())
    assert (attachment["width"], attachment["height"]) == (32, 32)
    message = one(events, "message.completed")["message"]
    assert message["text"] == stream.text
    assert [shown["object_id"] for shown in message["attachments"]] == [attachment["object_id"]]
    assert kinds(events)[-2:] == ["message.completed", "run.completed"]
    assert "attachment.failed" not in kinds(events)
    assert provider.posts == ["/v1/responses"]


def test_an_image_whose_base64_comes_in_lines_is_stored(database_url: str, tmp_path: Path) -> None:
    stream = STREAMS["no-partials"]
    (text,), (image,) = stream.results, stream.images
    in_lines = json.dumps("\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)))
    data = stream.data.replace(json.dumps(text).encode(), in_lines.encode())
    assert data != stream.data
    with serving(data) as provider, running_server(database_url, provider.url, tmp_path) as server:
        events = server.sign_up("Ada's").draw("Draw it again")
    assert one(events, "attachment.created")["attachment"]["sha256"] == hashlib.sha256(image).hexdigest()


def test_an_image_that_no_worker_holds_is_rejected_by_its_size(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_bytes, "MAX_IMAGE_BYTES", 100)
    stream = STREAMS["partials"]
    with serving(stream.data) as provider, running_server(database_url, provider.url, tmp_path) as server:
        events = server.sign_up("Ada's").draw("Draw it again")
    failed = one(events, "attachment.failed")
    assert failed["code"] == "image_too_large"
    assert "IMAGE_OUTPUT_MAX_MB" in failed["detail"]
    assert text_of(events) == stream.text
    assert kinds(events)[-1] == "run.completed"


def _status(stream: Stream) -> str:
    (item,) = [item for item in stream.events[-1]["response"]["output"] if item["type"] == "image_generation_call"]
    return str(item["status"])
