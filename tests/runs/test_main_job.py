"""The main job over HTTP: an agent draws, the image is stored, the chat streams it."""

import hashlib

import httpx

from tests.app_server import ApiUser, AppServer, kinds, one


def test_a_drawn_image_is_streamed_stored_and_linked(ada: ApiUser) -> None:
    events = ada.draw("Draw a lighthouse at dusk")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    received = kinds(events)
    assert received[:2] == ["run.created", "run.started"]
    assert received[-2:] == ["message.completed", "run.completed"]
    for kind in ("message.started", "text.delta", "tool.started", "tool.progress", "tool.completed", "image.partial"):
        assert kind in received
    attachment = one(events, "attachment.created")["attachment"]
    assert (attachment["width"], attachment["height"]) == (1024, 1024)
    assert attachment["mime_type"] == "image/png"
    assert attachment["revised_prompt"]
    image = httpx.get(attachment["url"])
    assert image.status_code == 200
    assert image.headers["content-type"] == "image/png"
    assert hashlib.sha256(image.content).hexdigest() == attachment["sha256"]
    assert len(image.content) == attachment["size_bytes"]


def test_the_conversation_keeps_the_image_with_a_fresh_link(ada: ApiUser) -> None:
    events = ada.draw("Draw a blue boat")
    conversation_id = one(events, "run.created")["run"]["conversation_id"]
    asked, answered = ada.messages(conversation_id)
    assert (asked["role"], asked["text"]) == ("user", "Draw a blue boat")
    assert answered["text"] == one(events, "message.completed")["message"]["text"]
    (attachment,) = answered["attachments"]
    assert attachment["object_id"] == one(events, "attachment.created")["attachment"]["object_id"]
    assert httpx.get(attachment["url"]).status_code == 200


def test_previews_are_links_that_work(ada: ApiUser) -> None:
    previews = [event for event in ada.draw("Draw a tree") if event["type"] == "image.partial"]
    assert [preview["index"] for preview in previews] == [0, 1]
    for preview in previews:
        assert "storage_key" not in preview
        assert httpx.get(preview["url"]).headers["content-type"] == preview["mime_type"]


def test_an_agent_without_images_to_draw_talks(ada: ApiUser) -> None:
    events = ada.ask("Hello, how are you?")
    assert "attachment.created" not in kinds(events)
    assert one(events, "message.completed")["message"]["text"]


def test_a_follow_up_goes_on_from_the_last_answer(ada: ApiUser) -> None:
    first = ada.draw("Draw a green house")
    conversation_id = one(first, "run.created")["run"]["conversation_id"]
    second = ada.ask("Now make it look realistic", conversation_id=conversation_id)
    old, new = (one(events, "attachment.created")["attachment"] for events in (first, second))
    assert old["sha256"] != new["sha256"]
    assert len(ada.messages(conversation_id)) == 4


def test_a_stranger_sees_nothing_of_it(ada: ApiUser, stranger: ApiUser) -> None:
    events = ada.draw("Draw a red house")
    run = one(events, "run.created")["run"]
    attachment = one(events, "attachment.created")["attachment"]
    for path in (
        f"/v1/runs/{run['id']}",
        f"/v1/runs/{run['id']}/events",
        f"/v1/conversations/{run['conversation_id']}",
        f"/v1/conversations/{run['conversation_id']}/messages",
        f"/v1/attachments/{attachment['object_id']}",
        f"/v1/attachments/{attachment['object_id']}/content",
    ):
        assert stranger.http.get(path).status_code == 404, path
    assert stranger.http.get("/v1/conversations").json()["data"] == []
    assert stranger.http.get("/v1/attachments").json()["data"] == []


def test_a_late_reader_gets_the_same_events_and_no_more(ada: ApiUser) -> None:
    events = ada.draw("Draw a cat")
    run_id = events[0]["run_id"]
    assert kinds(ada.events(run_id)) == kinds(events)
    assert kinds(ada.events(run_id, after=events[3]["seq"])) == kinds(events)[4:]
    done = ada.http.get(f"/v1/runs/{run_id}/events", headers={"Last-Event-ID": str(events[-1]["seq"])})
    assert done.status_code == 204


def test_a_stopped_run_ends_as_cancelled_and_keeps_no_one_waiting(server: AppServer, ada: ApiUser) -> None:
    run = ada.start("Draw a slow thing [offline: slow=1000]", agent_key="designer")
    assert ada.http.put(f"/v1/runs/{run['id']}/cancellation").status_code == 202
    assert kinds(ada.events(run["id"]))[-1] == "run.cancelled"
    assert ada.http.get(f"/v1/runs/{run['id']}").json()["status"] == "cancelled"


def test_what_was_said_in_a_failed_turn_is_not_forgotten(ada: ApiUser, provider_url: str) -> None:
    first = ada.ask("Hello")
    conversation_id = one(first, "run.created")["run"]["conversation_id"]
    failed = ada.ask("My word is quokka [offline: failed]", conversation_id=conversation_id)
    assert kinds(failed)[-1] == "run.failed"
    ada.ask("What did I say last?", conversation_id=conversation_id)
    requests = httpx.get(provider_url.removesuffix("/v1") + "/offline/requests").json()
    sent = next(seen["body"] for seen in reversed(requests) if seen["path"] == "/v1/responses")
    assert sent["previous_response_id"]
    assert [item["content"] for item in sent["input"] if "quokka" in str(item)]


def test_the_provider_can_tell_people_apart_without_knowing_them(
    ada: ApiUser, stranger: ApiUser, provider_url: str
) -> None:
    for user in (ada, ada, stranger):
        user.ask("Hello")
    requests = httpx.get(provider_url.removesuffix("/v1") + "/offline/requests").json()
    sent = [seen["body"]["safety_identifier"] for seen in requests if seen["path"] == "/v1/responses"][-3:]
    assert sent[0] == sent[1] != sent[2]
    assert ada.signed_up["user"]["id"] not in sent[0]
