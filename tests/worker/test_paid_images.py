"""What was paid for is never thrown away: large images, many, two under one name, and those without a row."""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text as sql

from app.db import Database
from tests import timeouts
from tests.app_server import ApiUser, Event, kinds, one, running_server
from tests.made_streams import call, image, png, reasoning, stream_of, text
from tests.stream_server import serving
from tests.tables import rows
from tests.usage.books import faults

pytestmark = pytest.mark.proof(34, "paid images")

LEASE_SECONDS = 2.0
MAX_EVENT_BYTES = 64 * 1024
SHOWN = 20


def test_an_image_over_the_limit_is_stored_smaller_and_logged(ada: ApiUser, caplog: pytest.LogCaptureFixture) -> None:
    events = ada.draw("Draw a house [offline: big=8]")
    assert kinds(events)[-2:] == ["message.completed", "run.completed"]
    made = one(events, "attachment.created")["attachment"]
    assert (made["status"], made["mime_type"]) == ("stored", "image/png")
    assert made["options"]["reduced_from"] == 8 * 1024**2
    assert made["size_bytes"] < 6 * 1024**2
    assert hashlib.sha256(httpx.get(made["url"]).content).hexdigest() == made["sha256"]
    (line,) = [vars(record) for record in caplog.records if record.getMessage() == "image.too_large"]
    assert (line["tenant_id"], line["run_id"]) == (ada.signed_up["tenant"]["id"], events[0]["run_id"])
    assert (line["tool_call_id"], line["size_bytes"]) == (made["tool_call_id"], 8 * 1024**2)


def test_an_image_that_cannot_be_made_smaller_is_refused_by_name_and_size(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with running_server(database_url, provider_url, tmp_path, image_output_max_mb=0.0001) as server:
        ada = server.sign_up("Ada's")
        events = ada.draw("Draw a house")
        failed = one(events, "attachment.failed")
        assert (failed["code"], failed["retryable"]) == ("image_too_large", False)
        for said in ("MB; IMAGE_OUTPUT_MAX_MB", "0.0001 MB"):
            assert said in failed["detail"]
        (attachment,) = one(events, "message.completed")["message"]["attachments"]
        assert (attachment["object_id"], attachment["status"]) == (failed["object_id"], "failed")
        again = ada.http.get(f"/v1/attachments/{failed['object_id']}").json()
        (reloaded,) = ada.messages(events[0]["run"]["conversation_id"])[-1]["attachments"]
        assert again == reloaded == attachment
        for name in ("size_bytes", "sha256", "url", "download_url", "url_expires_at"):
            assert again[name] is None, name
        assert ada.http.get("/v1/attachments").json()["data"] == []
        assert rows(database_url, "SELECT stored_bytes FROM attachments") == [(0,)]


def test_two_images_under_one_tool_call_are_two_attachments(database_url: str, tmp_path: Path) -> None:
    images = [png("red"), png("blue")]
    data = stream_of(*(image(one, "ig_same") for one in images), text(["Two."]))
    with serving(data) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        events = ada.draw("Draw two")
        made = [event["attachment"] for event in events if event["type"] == "attachment.created"]
        stored = {httpx.get(one["url"]).content for one in made}
        shown = one(events, "message.completed")["message"]["attachments"]
        (dearer,) = (image["object_id"] for image in shown if image["cost_usd"] is not None)
        assert ada.http.delete(f"/v1/attachments/{dearer}").status_code == 204
        # The one that is left costs nothing, and the books are right.
        assert faults(database_url, events[0]["run_id"]) == []
    assert stored == set(images)
    assert {one["tool_call_id"] for one in made} == {"ig_same"}
    assert len(one(events, "message.completed")["message"]["attachments"]) == len(made) == 2


@pytest.mark.slow
def test_an_image_whose_row_could_not_be_written_is_fetched_again(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    word = f"w{uuid.uuid4().hex}"
    with running_server(database_url, provider_url, tmp_path, run_lease_seconds=LEASE_SECONDS) as server:
        ada = server.sign_up("Ada's")
        with no_attachments(database_url):
            events = ada.draw(f"Draw a house called {word}")
        failed = one(events, "attachment.failed")
        assert (failed["code"], failed["retryable"]) == ("ingest_failed", True)
        # Not even the row of one that failed could be written.
        assert one(events, "message.completed")["message"]["attachments"] == []
        recovered = wait_for_attachments(ada, 1)
        (shown,) = ada.messages(events[0]["run"]["conversation_id"])[-1]["attachments"]
        assert hashlib.sha256(httpx.get(shown["url"]).content).hexdigest() == shown["sha256"]
    assert [made["object_id"] for made in recovered] == [shown["object_id"]]
    assert (shown["tool_call_id"], shown["agent_key"]) == (failed["tool_call_id"], "designer")
    assert shown["options"]["quality"] == "low"
    assert posts_with(provider_url, word) == 1
    assert rows(database_url, "SELECT prompt, unrecorded_images FROM attachments, runs") == [
        (f"Draw a house called {word}", [])
    ]


@pytest.mark.parametrize("deleted", [False, True])
def test_an_image_that_is_found_again_takes_the_place_of_its_failure_unless_that_was_deleted(
    database_url: str, provider_url: str, tmp_path: Path, *, deleted: bool
) -> None:
    with running_server(database_url, provider_url, tmp_path, run_lease_seconds=LEASE_SECONDS) as server:
        ada = server.sign_up("Ada's")
        with no_attachments(database_url, but_failed=True):
            events = ada.draw()
            failed = one(events, "attachment.failed")
            (shown,) = one(events, "message.completed")["message"]["attachments"]
            assert (shown["object_id"], shown["status"], shown["error"]["retryable"]) == (
                failed["object_id"],
                "failed",
                True,
            )
            if deleted:
                assert ada.http.delete(f"/v1/attachments/{failed['object_id']}").status_code == 204
        if deleted:
            assert rows(database_url, "SELECT unrecorded_images FROM runs") == [([],)]
            return
        (recovered,) = wait_for_attachments(ada, 1)
        message = ada.messages(events[0]["run"]["conversation_id"])[-1]
    assert recovered["object_id"] == failed["object_id"]
    assert [made["object_id"] for made in message["attachments"]] == [failed["object_id"]]
    assert {"type": "image", "object_id": failed["object_id"]} in message["parts"]
    assert rows(database_url, "SELECT count(*) FROM attachments") == [(1,)]


@pytest.mark.slow
def test_images_that_the_database_refuses_are_tried_again_ever_later(
    database_url: str,
    provider_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("app.worker.recovery.FIRST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr("app.worker.housekeeping.REPAIR_EVERY", timedelta(seconds=0.02))
    with running_server(database_url, provider_url, tmp_path, run_lease_seconds=1) as server:
        ada = server.sign_up("Ada's")
        with no_attachments(database_url):
            assert ada.draw()[-1]["type"] == "run.completed"
            deadline = time.monotonic() + timeouts.PATIENCE
            while len(failed := failed_recoveries(caplog)) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert failed[1] - failed[0] >= 0.2
        assert failed[2] - failed[1] >= 0.4
        wait_for_attachments(ada, 1)


def failed_recoveries(caplog: pytest.LogCaptureFixture) -> list[float]:
    """When."""
    return [record.created for record in caplog.records if record.getMessage() == "image.recovery_failed"]


@pytest.mark.parametrize("count", [45, pytest.param(1_000, marks=[pytest.mark.prove, pytest.mark.timeout(600)])])
def test_a_message_shows_its_first_images_and_says_where_the_others_are(
    database_url: str, provider_url: str, tmp_path: Path, count: int
) -> None:
    with running_server(database_url, provider_url, tmp_path) as server:
        ada, stranger = server.sign_up("Ada's"), server.sign_up("Stranger's")
        asked = f"Draw a house [offline: images={count}] [offline: slow=0]"
        run = ada.start(asked, agent_key="designer", image={"quality": "low", "size": "1024x640"})
        sizes, events = read_sizes(ada, run["id"])
        assert max(sizes) < MAX_EVENT_BYTES
        message = one(events, "message.completed")["message"]
        first = [made["object_id"] for made in message["attachments"]]
        assert len(first) == SHOWN
        path = attachments_path(events, message)
        everything = following(ada, path, None)
        assert first + following(ada, path, message["attachments_next_cursor"]) == everything
        created = [event["attachment"]["object_id"] for event in events if event["type"] == "attachment.created"]
        assert sorted(created) == everything
        assert len(created) == count
        listed = ada.messages(events[0]["run"]["conversation_id"])[-1]
        assert [made["object_id"] for made in listed["attachments"]] == first
        assert listed["attachments_next_cursor"] == message["attachments_next_cursor"]
        assert stranger.http.get(path).status_code == 404


def test_long_prompts_leave_room_for_fewer_images_in_an_event(database_url: str, tmp_path: Path) -> None:
    items = [image(png("red", (64 + number, 64)), f"ig_{number}") for number in range(12)]
    for item, _ in items:
        item["revised_prompt"] = "ä" * 40_000
    data = stream_of(*items, text(["Many."]))
    with serving(data) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        run = ada.start("Draw twelve", agent_key="designer")
        sizes, events = read_sizes(ada, run["id"])
        assert max(sizes) < MAX_EVENT_BYTES
        message = one(events, "message.completed")["message"]
        assert 0 < len(message["attachments"]) < len(items)
        rest = following(ada, attachments_path(events, message), message["attachments_next_cursor"])
        assert len(message["attachments"]) + len(rest) == len(items)


# A quotation mark takes two bytes of JSON.
@pytest.mark.parametrize("quotes", [0, 15_000, 30_500, 32_500, 40_000])
def test_only_a_message_with_a_longer_text_exceeds_what_an_event_may_have(
    database_url: str, tmp_path: Path, quotes: int
) -> None:
    items = [image(png("red", (64 + number, 64)), f"ig_{number}") for number in range(3)]
    for item, _ in items:
        item["revised_prompt"] = "ä" * 8_000
    thought = reasoning('"' * 100_000)
    with (
        serving(stream_of(thought, call("x" * 100_000)), stream_of(*items, text(['"' * quotes]))) as provider,
        running_server(database_url, provider.url, tmp_path) as server,
    ):
        ada = server.sign_up("Ada's")
        run = ada.start("Draw three", agent_key="designer")
        sizes, events = read_sizes(ada, run["id"])
        message = one(events, "message.completed")["message"]
        larger = [event["type"] for size, event in zip(sizes, events, strict=True) if size > MAX_EVENT_BYTES]
        assert larger == (["message.completed"] if 2 * quotes > MAX_EVENT_BYTES else [])
        assert "".join(event["delta"] for event in events if event["type"] == "reasoning.delta") == '"' * 100_000
        rest = following(ada, attachments_path(events, message), message["attachments_next_cursor"])
        assert len(message["attachments"]) + (len(rest) if message["attachments_next_cursor"] else 0) == len(items)


def test_an_answer_without_text_and_image_is_reported_as_one(ada: ApiUser) -> None:
    for agent_key in ("assistant", "designer"):
        events = ada.ask("Draw a house [offline: empty]", agent_key=agent_key)
        assert (events[-1]["type"], events[-1]["error"]["code"]) == ("run.failed", "empty_answer")
        assert events[-1]["error"]["retryable"] is True
        (message,) = [event["message"] for event in events if event["type"] == "message.completed"]
        assert (message["status"], message["text"], message["parts"]) == ("failed", "", [])
        again = ada.ask("Hello again", agent_key=agent_key, conversation_id=events[0]["run"]["conversation_id"])
        assert again[-1]["type"] == "run.completed"


@contextmanager
def no_attachments(database_url: str, *, but_failed: bool = False) -> Generator[None]:
    """Rows of images cannot be written meanwhile, or those of images with bytes cannot."""
    function = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$"
    rows_with_bytes = "WHEN (NEW.sha256 IS NOT NULL)" if but_failed else ""
    trigger = (
        f"CREATE TRIGGER refuse BEFORE INSERT ON attachments FOR EACH ROW {rows_with_bytes} EXECUTE FUNCTION refuse()"
    )
    asyncio.run(execute(database_url, function, trigger))
    yield
    asyncio.run(execute(database_url, "DROP TRIGGER refuse ON attachments"))


async def execute(database_url: str, *statements: str) -> None:
    database = Database(database_url, pool_size=1)
    async with database.engine.begin() as connection:
        for statement in statements:
            await connection.execute(sql(statement))
    await database.close()


def wait_for_attachments(ada: ApiUser, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + timeouts.STORED_AFTER_OUTAGE
    while len(found := ada.http.get("/v1/attachments").json()["data"]) < count or found[0]["status"] != "stored":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return list(found)


def read_sizes(ada: ApiUser, run_id: str) -> tuple[list[int], list[Event]]:
    """The bytes of each event's data, and the events."""
    sizes: list[int] = []
    with ada.http.stream("GET", f"/v1/runs/{run_id}/events") as answer:
        frames = "".join(answer.iter_text())
    sizes = [len(line.encode()) for line in frames.splitlines() if line.startswith("data: ")]
    return sizes, [json.loads(line.removeprefix("data: ")) for line in frames.splitlines() if line.startswith("data: ")]


def following(ada: ApiUser, path: str, cursor: str | None) -> list[str]:
    """The ids of a list's images behind that cursor, page by page."""
    found: list[str] = []
    while True:
        page = ada.http.get(path, params={"limit": "100"} | ({"cursor": cursor} if cursor else {}))
        found += [made["object_id"] for made in page.json()["data"]]
        if (cursor := page.json()["next_cursor"]) is None:
            return found


def attachments_path(events: list[Event], message: dict[str, Any]) -> str:
    return f"/v1/conversations/{events[0]['run']['conversation_id']}/messages/{message['id']}/attachments"


def posts_with(provider_url: str, word: str) -> int:
    """How many responses were asked for with that word in their input."""
    requests = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    return sum(request["method"] == "POST" and word in json.dumps(request["body"]) for request in requests)
