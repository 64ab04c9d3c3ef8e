"""While the store is away the text still arrives; the picture follows once it is back, and is not bought twice."""

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from tests.house import Event, House, Person, events_of, kinds, one, running_house
from tests.servers import Proxy, ProxyMode, s3_server

TERMINAL = ("run.completed", "run.failed", "run.cancelled")
END_SECONDS = 6.0
REPAIR_SECONDS = 15.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Depot:
    """A service whose store is reached through `proxy`."""

    house: House
    proxy: Proxy


@pytest.fixture
def depot(database_url: str, provider_url: str, tmp_path: Path) -> Generator[Depot]:
    with s3_server(tmp_path / "s3") as s3, Proxy(s3.endpoint) as proxy:
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        settings: dict[str, Any] = {"storage_provider": "minio", "minio_endpoint": proxy.endpoint, **minio}
        with running_house(database_url, provider_url, tmp_path, **settings) as house:
            yield Depot(house, proxy)
            proxy.mode = "refuse"  # lets the threads go that still wait


@pytest.mark.parametrize("mode", ["refuse", "hang"])
def test_a_store_that_is_away_delays_the_picture_and_nothing_else(
    depot: Depot, provider_url: str, mode: ProxyMode, caplog: pytest.LogCaptureFixture
) -> None:
    ada = depot.house.sign_up("Ada's")
    word = f"w{uuid.uuid4().hex}"
    depot.proxy.mode = mode
    events, seconds_to_end = draw_timed(ada, f"Draw a house called {word}")
    assert seconds_to_end < END_SECONDS
    assert kinds(events)[-2:] == ["message.completed", "run.completed"]
    assert [kind for kind in kinds(events) if kind in TERMINAL] == ["run.completed"]
    assert one(events, "message.completed")["message"]["text"]
    assert "attachment.created" not in kinds(events)
    pending = assert_told_of_waiting(ada, events)
    assert_logged(caplog, ada, events)

    depot.proxy.mode = "pass"
    stored = wait_until_stored(ada, pending["object_id"])
    assert stored["sha256"] == pending["sha256"]
    assert hashlib.sha256(httpx.get(stored["url"]).content).hexdigest() == pending["sha256"]
    (shown,) = ada.messages(pending["conversation_id"])[-1]["attachments"]
    assert (shown["object_id"], shown["status"]) == (stored["object_id"], "stored")
    assert httpx.get(shown["url"]).status_code == 200
    assert posts_with(provider_url, word) == 1


def test_a_picture_over_the_limit_is_refused_by_name_and_size(ada: Person) -> None:
    events = ada.draw("Draw a house [offline: big=8]")
    assert kinds(events)[-2:] == ["message.completed", "run.completed"]
    failed = one(events, "attachment.failed")
    assert (failed["code"], failed["retryable"]) == ("image_too_large", False)
    for said in ("8.0 MB", "IMAGE_OUTPUT_MAX_MB", "6 MB"):
        assert said in failed["detail"]
    message = one(events, "message.completed")["message"]
    assert message["text"]
    (attachment,) = message["attachments"]
    assert (attachment["object_id"], attachment["status"]) == (failed["object_id"], "failed")
    assert attachment["url"] is None
    assert ada.http.get(f"/v1/attachments/{failed['object_id']}").json()["status"] == "failed"


def draw_timed(ada: Person, text: str) -> tuple[list[Event], float]:
    """The events, and the seconds from the last piece of text to the terminal event, as a reader sees them."""
    body = {"input": text, "agent_key": "designer"}
    events: list[Event] = []
    text_ended = 0.0
    with ada.http.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200
        for event in events_of(answer):
            events.append(event)
            if event["type"] == "text.delta":
                text_ended = time.monotonic()
    assert text_ended, "there was no text"
    return events, time.monotonic() - text_ended


def assert_told_of_waiting(ada: Person, events: list[Event]) -> Json:
    """The picture is announced as failed for now, and pending wherever it is read; its row."""
    failed = one(events, "attachment.failed")
    assert (failed["code"], failed["retryable"]) == ("storage_unavailable", True)
    pending = cast(Json, ada.http.get(f"/v1/attachments/{failed['object_id']}").json())
    assert (pending["status"], pending["url"]) == ("pending", None)
    assert ada.http.get(f"/v1/attachments/{failed['object_id']}/content").status_code == 409
    (shown,) = one(events, "message.completed")["message"]["attachments"]
    assert (shown["object_id"], shown["status"], shown["url"]) == (failed["object_id"], "pending", None)
    return pending


def assert_logged(caplog: pytest.LogCaptureFixture, ada: Person, events: list[Event]) -> None:
    (line,) = [vars(record) for record in caplog.records if record.getMessage() == "image.ingest_failed"]
    assert line["levelno"] == logging.ERROR
    assert line["tenant_id"] == ada.signed_up["tenant"]["id"]
    assert line["run_id"] == events[0]["run_id"]
    assert line["tool_call_id"] == one(events, "attachment.failed")["tool_call_id"]


def wait_until_stored(ada: Person, object_id: str) -> Json:
    deadline = time.monotonic() + REPAIR_SECONDS
    while True:
        attachment = cast(Json, ada.http.get(f"/v1/attachments/{object_id}").json())
        if attachment["status"] == "stored":
            return attachment
        assert time.monotonic() < deadline, attachment
        time.sleep(0.2)


def posts_with(provider_url: str, word: str) -> int:
    """How many responses were asked for with that word in their input."""
    requests = cast(list[Json], httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json())
    return sum(request["method"] == "POST" and word in json.dumps(request["body"]) for request in requests)
