"""What a conversation's messages tell after a reload: how each ended, and its text and images in their order."""

import json
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.db import uuid7
from tests import timeouts
from tests.app_server import ApiUser, AppServer, Event, kinds, one, running_server
from tests.made_streams import image, png, stream_of, text
from tests.stream_server import serving
from tests.tables import rows

Json = dict[str, Any]
COPIES = """
INSERT INTO attachments (id, tenant_id, conversation_id, run_id, message_id, user_id, agent_key, kind, status, filename,
  mime_type, size_bytes, sha256, storage_key, options, created_at)
SELECT copies.id, a.tenant_id, conversation_id, run_id, message_id, user_id, agent_key, kind, status, filename,
  mime_type, size_bytes, copies.id::text, storage_key, options, created_at
FROM attachments a, unnest(CAST(:ids AS uuid[])) copies (id) WHERE a.id = :like RETURNING 1
"""
SHAPED = "UPDATE messages SET text = :text, image_places = CAST(:places AS jsonb) WHERE id = :id RETURNING 1"
# The fields of a message that are its run's.
OF_RUN = ("agent_key", "error", "usage", "cost_usd")


def last_message(user: ApiUser, events: list[Event]) -> Json:
    return user.messages(events[0]["run"]["conversation_id"])[-1]


def assert_told_as_kept(user: ApiUser, events: list[Event]) -> Json:
    """The message is the same in the run's events, replayed or not, and after a reload; it ends as the run does."""
    message, run = last_message(user, events), events[-1]["run"]
    told = one(events, "message.completed")["message"]
    for name in ("id", "role", "status", "text", "parts", *OF_RUN):
        assert told[name] == message[name], name
    assert message["status"] == run["status"]
    assert {name: message[name] for name in OF_RUN} == {name: run[name] for name in OF_RUN}
    return message


def test_text_and_images_come_back_in_the_order_in_which_they_came(database_url: str, tmp_path: Path) -> None:
    data = stream_of(
        text(["Be", "fore."], "msg_1"),
        image(png("red"), "ig_1"),
        image(png("blue"), "ig_2"),
        text(["After."], "msg_2"),
        image(png("green"), "ig_3"),
    )
    with serving(data) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        events = ada.draw("Draw three")
        message = assert_told_as_kept(ada, events)
        drawn = {made["tool_call_id"]: made["object_id"] for made in message["attachments"]}
        first, second, third = ({"type": "image", "object_id": drawn[f"ig_{number}"]} for number in (1, 2, 3))
        before, after = {"type": "text", "text": "Before."}, {"type": "text", "text": "After."}
        assert message["parts"] == [before, first, second, after, third]
        assert message["text"] == "Before.\n\nAfter."
        # A deleted picture leaves its place, and nothing else of it.
        assert ada.http.delete(f"/v1/attachments/{drawn['ig_2']}").status_code == 204
        gone = {"type": "image", "object_id": None}
        left = last_message(ada, events)
    assert left["parts"] == [before, first, gone, after, third]
    assert sorted(made["tool_call_id"] for made in left["attachments"]) == ["ig_1", "ig_3"]


def test_a_deleted_image_that_came_after_the_text_leaves_its_place(database_url: str, tmp_path: Path) -> None:
    colours = ("red", "blue", "green", "black")
    pictures = [image(png(colour), f"ig_{number}") for number, colour in enumerate(colours)]
    with (
        serving(stream_of(text(["Four 🖼"], "msg_1"), *pictures)) as provider,
        running_server(database_url, provider.url, tmp_path) as server,
    ):
        ada, other = server.sign_up("Ada's"), server.sign_up("Other's")
        events, others = ada.draw("Draw four"), other.draw("Draw four")
        # As a run left them whose worker did not know where they come.
        rows(database_url, "UPDATE messages SET image_places = NULL")
        before = last_message(ada, events)["parts"]
        ids = [part["object_id"] for part in before[1:]]
        theirs = last_message(other, others)["parts"]
        for number in (2, 0):
            assert ada.http.delete(f"/v1/attachments/{ids[number]}").status_code == 204
            before[1 + number]["object_id"] = None
            assert last_message(ada, events)["parts"] == before
        # One that is found again later is shown after those that have a place.
        found = str(uuid7())
        rows(database_url, COPIES, {"like": ids[1], "ids": [found]})
        before.append({"type": "image", "object_id": found})
        assert last_message(ada, events)["parts"] == before
        assert ada.http.delete(f"/v1/attachments/{found}").status_code == 204
        before[-1] = {"type": "image", "object_id": None}
        assert last_message(ada, events)["parts"] == before
        assert last_message(other, others)["parts"] == theirs
    assert [part["object_id"] is None for part in before[1:]] == [True, False, True, False, True]


def test_a_message_of_a_thousand_parts_has_them_all(own_server: AppServer, database_url: str) -> None:
    ada = own_server.sign_up()
    events = ada.draw()
    message = last_message(ada, events)
    # Every second one was deleted since.
    ids = [str(uuid7()) for _ in range(500)]
    kept = ids[::2]
    rows(database_url, COPIES, {"like": message["attachments"][0]["object_id"], "ids": kept})
    places = json.dumps([[number, object_id] for number, object_id in enumerate(ids)])
    rows(database_url, SHAPED, {"id": message["id"], "text": "x" * 500, "places": places})
    shown = last_message(ada, events)
    images = [part["object_id"] for part in shown["parts"] if part["type"] == "image"]
    assert [part["type"] for part in shown["parts"][:1000]] == ["image", "text"] * 500
    assert images[:500] == [object_id if object_id in kept else None for object_id in ids]
    assert len(shown["attachments"]) == 20


def test_a_message_that_is_too_long_to_be_sent_twice_has_its_parts_in_the_history(
    database_url: str, tmp_path: Path
) -> None:
    long = ["x" * 1000] * 40
    data = stream_of(text(long, "msg_1"), image(png("red"), "ig_1"), text(["After."], "msg_2"))
    with serving(data) as provider, running_server(database_url, provider.url, tmp_path) as server:
        ada = server.sign_up("Ada's")
        run = ada.start("Draw", agent_key="designer")
        with ada.http.stream("GET", f"/v1/runs/{run['id']}/events") as answer:
            told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
        completed = one(told, "message.completed")
        assert (completed["truncated"], completed["message"]["parts"]) == (True, [])
        assert completed["message"]["text"] == "".join(long) + "\n\nAfter."
        assert len(json.dumps(completed)) < 64 * 1024
        parts = last_message(ada, told)["parts"]
    assert [part["type"] for part in parts] == ["text", "image", "text"]


def test_a_run_that_failed_keeps_its_text_and_why(ada: ApiUser) -> None:
    events = ada.ask("Tell me a story [offline: words=40] [offline: failed=late]", agent_key="assistant")
    assert events[-1]["type"] == "run.failed"
    message = assert_told_as_kept(ada, events)
    assert (message["status"], message["error"]) == ("failed", events[-1]["error"])
    assert message["text"]
    assert message["text"] == "".join(event["delta"] for event in events if event["type"] == "text.delta")
    assert message["parts"] == [{"type": "text", "text": message["text"]}]
    # The conversation goes on, and the model is not sent an empty message.
    again = ada.ask("Once more", conversation_id=events[0]["run"]["conversation_id"])
    assert again[-1]["type"] == "run.completed"


def test_a_run_that_failed_before_a_word_has_an_empty_message(ada: ApiUser, stranger: ApiUser) -> None:
    events = ada.ask("Hello [offline: http=400]", agent_key="assistant")
    assert kinds(events)[-2:] == ["message.completed", "run.failed"]
    message = assert_told_as_kept(ada, events)
    assert (message["status"], message["text"], message["parts"], message["attachments"]) == ("failed", "", [], [])
    again = ada.ask("Once more", conversation_id=events[0]["run"]["conversation_id"])
    assert again[-1]["type"] == "run.completed"
    assert stranger.http.get(f"/v1/conversations/{message['id']}/messages").status_code == 404


def test_a_stopped_run_keeps_what_was_said(ada: ApiUser) -> None:
    run = ada.start("Tell me a story [offline: words=400] [offline: silence=30]", agent_key="assistant")
    with ada.http.stream("GET", f"/v1/runs/{run['id']}/events") as answer:
        for line in answer.iter_lines():
            if line == "event: text.delta":
                break
    assert ada.http.put(f"/v1/runs/{run['id']}/cancellation").status_code == 202
    message = assert_told_as_kept(ada, ada.events(run["id"]))
    assert (message["status"], message["error"]) == ("cancelled", None)
    assert message["text"]


@pytest.mark.slow
def test_a_run_that_was_stopped_while_it_waited_has_an_empty_message(ada: ApiUser) -> None:
    first = ada.start("Draw a house [offline: slow=2]", agent_key="designer")
    waiting = ada.start("And now a boat", conversation_id=first["conversation_id"], if_busy="queue")
    assert ada.http.put(f"/v1/runs/{waiting['id']}/cancellation").json()["status"] == "cancelled"
    events = ada.events(waiting["id"])
    assert kinds(events) == ["run.created", "message.started", "message.completed", "run.cancelled"]
    assert ada.events(first["id"])[-1]["type"] == "run.completed"
    said = {message["run_id"]: message for message in ada.messages(first["conversation_id"])}
    assert (said[waiting["id"]]["status"], said[waiting["id"]]["text"]) == ("cancelled", "")


def test_a_users_message_shows_what_they_sent(ada: ApiUser) -> None:
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    sent = ada.http.post("/v1/attachments", files={"file": ("a.png", buffer.getvalue())}).json()
    events = ada.ask("What is this?", agent_key="assistant", attachments=[sent["object_id"]])
    message = ada.messages(events[0]["run"]["conversation_id"])[0]
    assert message["parts"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "object_id": sent["object_id"]},
    ]
    assert (message["role"], message["status"]) == ("user", "completed")
    assert {name: message[name] for name in OF_RUN} == dict.fromkeys(OF_RUN)
    ada.http.delete(f"/v1/attachments/{sent['object_id']}")
    assert ada.messages(message_conversation(events))[0]["parts"][1] == {"type": "image", "object_id": None}


def test_a_users_message_shows_the_image_that_it_has_changed(ada: ApiUser, colleague: ApiUser) -> None:
    drawn = one(ada.draw(), "attachment.created")["attachment"]["object_id"]
    events = ada.draw("Add a red scarf", edit=drawn)
    message = ada.messages(message_conversation(events))[0]
    assert message["parts"] == [{"type": "text", "text": "Add a red scarf"}, {"type": "image", "object_id": drawn}]
    assert [shown["object_id"] for shown in message["attachments"]] == [drawn]
    assert (message["status"], message["agent_key"], message["cost_usd"]) == ("completed", None, None)
    also_sent = ada.draw("Add this", edit=drawn, attachments=[drawn])
    assert len(ada.messages(message_conversation(also_sent))[0]["parts"]) == 2
    ada.http.delete(f"/v1/attachments/{drawn}")
    assert ada.messages(message_conversation(events))[0]["parts"][1] == {"type": "image", "object_id": None}


def test_a_text_that_begins_with_blank_lines_keeps_them_in_its_part(ada: ApiUser) -> None:
    events = ada.ask("\n\nHello", agent_key="assistant")
    assert ada.messages(message_conversation(events))[0]["parts"] == [{"type": "text", "text": "\n\nHello"}]


def message_conversation(events: list[Event]) -> str:
    return str(events[0]["run"]["conversation_id"])


def test_an_image_that_failed_is_in_its_message_and_nowhere_else(own_server: AppServer, database_url: str) -> None:
    ada, stranger = own_server.sign_up(), own_server.sign_up()
    colleague = own_server.sign_up_invited(ada)
    events = ada.draw("Draw a house [offline: moderation=output]")
    failed = one(events, "attachment.failed")
    message = assert_told_as_kept(ada, events)
    (shown,) = message["attachments"]
    assert (shown["object_id"], shown["status"]) == (failed["object_id"], "failed")
    assert shown["error"] == {name: failed[name] for name in ("code", "detail", "retryable")}
    for name in ("sha256", "size_bytes", "url", "download_url", "url_expires_at", "width", "height"):
        assert shown[name] is None, name
    assert {"type": "image", "object_id": failed["object_id"]} in message["parts"]
    path = f"/v1/attachments/{failed['object_id']}"
    assert ada.http.get(path).json() == shown
    assert ada.http.get(f"{path}/content").json()["code"] == "not_stored"
    assert ada.http.get("/v1/attachments").json()["data"] == []
    assert ada.http.get("/v1/attachments", params={"q": "house"}).json()["data"] == []
    assert rows(database_url, "SELECT stored_bytes FROM attachments") == [(0,)]
    assert {user.http.get(path).status_code for user in (stranger, colleague)} == {404}
    edit = ada.http.post("/v1/runs", json={"input": "Edit it", "agent_key": "designer", "edit": failed["object_id"]})
    assert (edit.status_code, edit.json()["code"]) == (409, "not_stored")
    assert ada.http.delete(path).status_code == 204
    assert last_message(ada, events)["attachments"] == []


def test_a_message_is_there_as_soon_as_the_run_has_ended(ada: ApiUser) -> None:
    run = ada.start("Draw a house [offline: slow=1]", agent_key="designer")
    roles = [message["role"] for message in ada.messages(run["conversation_id"])]
    assert roles == ["user"]
    deadline = time.monotonic() + timeouts.PATIENCE
    while ada.http.get(f"/v1/runs/{run['id']}").json()["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [message["status"] for message in ada.messages(run["conversation_id"])] == ["completed", "completed"]
