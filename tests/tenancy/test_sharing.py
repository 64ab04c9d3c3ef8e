"""Sharing a conversation: every member reads it, its user alone changes it, and taking it back is felt at once."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.runs import access
from tests import timeouts
from tests.app_server import ApiUser, AppServer, one
from tests.tenancy.test_strangers import image, sent

FORBIDDEN = (403, "forbidden")
# As promised: the next look, and what it takes.
LOST_AFTER = 15.0


@pytest.fixture
def viewer(server: AppServer, ada: ApiUser) -> ApiUser:
    return server.sign_up_invited(ada, "viewer")


@pytest.fixture
def member(server: AppServer, ada: ApiUser) -> ApiUser:
    return server.sign_up_invited(ada, "member")


def test_every_member_reads_what_is_shared_and_nobody_else(ada: ApiUser, viewer: ApiUser, stranger: ApiUser) -> None:
    upload = sent(ada, image())
    run, drawn, conversation = drawn_by(ada, attachments=[upload])
    reads = [
        f"/v1/conversations/{conversation}",
        f"/v1/conversations/{conversation}/messages",
        f"/v1/runs/{run}",
        f"/v1/runs/{run}/events",
        f"/v1/attachments/{drawn}",
        f"/v1/attachments/{drawn}/content",
        f"/v1/attachments/{upload}",
    ]
    assert {viewer.http.get(path).status_code for path in reads} == {404}
    shared = share(ada, conversation)
    assert (shared["visibility"], shared["user_id"]) == ("tenant", ada.id)
    for path in reads:
        assert viewer.http.get(path).is_success, path
        assert stranger.http.get(path).status_code == 404, path
    messages = viewer.messages(conversation)
    assert [one["object_id"] for message in messages for one in message["attachments"]] == [upload, drawn]
    assert httpx.get(messages[1]["attachments"][0]["url"]).status_code == 200
    assert kinds_of(viewer, run) == kinds_of(ada, run)


def test_a_shared_conversation_is_listed_apart_from_ones_own(ada: ApiUser, member: ApiUser) -> None:
    conversation = ada.start("Hello there")["conversation_id"]
    private, own = ada.start("A secret")["conversation_id"], member.start("Mine")["conversation_id"]
    share(ada, conversation)
    assert listed(member) == [own]
    assert listed(member, shared=True) == [conversation]
    assert listed(member, shared=True, q="hello") == [conversation]
    assert listed(member, shared=True, q="secret") == []
    assert listed(ada, shared=True) == []
    assert private in listed(ada)


def test_only_its_user_changes_it(ada: ApiUser, member: ApiUser) -> None:
    run, drawn, conversation = drawn_by(ada)
    changes: list[Callable[[httpx.Client], httpx.Response]] = [
        lambda http: http.patch(f"/v1/conversations/{conversation}", json={"title": "Mine now"}),
        lambda http: http.patch(f"/v1/conversations/{conversation}", json={"visibility": "private"}),
        lambda http: http.post("/v1/runs", json={"input": "Hello", "conversation_id": conversation}),
        lambda http: http.put(f"/v1/runs/{run}/cancellation"),
        lambda http: http.delete(f"/v1/attachments/{drawn}"),
        lambda http: http.delete(f"/v1/conversations/{conversation}"),
    ]
    assert {change(member.http).status_code for change in changes} == {404}
    share(ada, conversation)
    assert {(answer.status_code, answer.json()["code"]) for answer in (change(member.http) for change in changes)} == {
        FORBIDDEN
    }
    assert {change(ada.http).is_success for change in changes} == {True}


@pytest.mark.parametrize("field", ["attachments", "edit", "mask"])
def test_anothers_shared_picture_is_looked_at_and_not_used(ada: ApiUser, member: ApiUser, field: str) -> None:
    _, drawn, conversation = drawn_by(ada)
    share(ada, conversation)
    named: Any = [drawn] if field == "attachments" else drawn
    body = {"input": "Draw it anew", "agent_key": "designer", field: named}
    if field == "mask":
        body["edit"] = sent(member, image("RGB", (16, 16)))
    answer = member.http.post("/v1/runs", json=body)
    assert (answer.status_code, answer.json()["code"]) == FORBIDDEN


def test_taken_back_it_is_gone_with_the_next_request(ada: ApiUser, member: ApiUser) -> None:
    run, drawn, conversation = drawn_by(ada)
    share(ada, conversation)
    assert member.http.get(f"/v1/attachments/{drawn}").status_code == 200
    share(ada, conversation, "private")
    for path in (f"/v1/conversations/{conversation}", f"/v1/runs/{run}", f"/v1/attachments/{drawn}"):
        assert member.http.get(path).status_code == 404
    assert listed(member, shared=True) == []
    entries = ada.http.get("/v1/audit", params={"target_id": conversation}).json()["data"]
    assert [(one["action"], one["changes"]) for one in entries] == [
        ("conversation.unshared", {"visibility": ["tenant", "private"]}),
        ("conversation.shared", {"visibility": ["private", "tenant"]}),
    ]


def test_an_unknown_visibility_is_refused(ada: ApiUser) -> None:
    conversation = ada.start("Hello")["conversation_id"]
    answer = ada.http.patch(f"/v1/conversations/{conversation}", json={"visibility": "world"})
    assert answer.status_code == 422


def revoke_key(ada: ApiUser, member: ApiUser, conversation: str) -> None:
    (key,) = member.http.get("/v1/api-keys").json()["data"]
    assert member.http.delete(f"/v1/api-keys/{key['id']}").status_code == 204


def remove_member(ada: ApiUser, member: ApiUser, conversation: str) -> None:
    assert ada.http.delete(f"/v1/members/{member.id}").status_code == 204


def take_back(ada: ApiUser, member: ApiUser, conversation: str) -> None:
    share(ada, conversation, "private")


@pytest.mark.slow
@pytest.mark.parametrize("take_away", [revoke_key, remove_member, take_back])
def test_the_open_stream_of_who_loses_access_ends(
    ada: ApiUser, member: ApiUser, take_away: Callable[[ApiUser, ApiUser, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert access.CHECK_SECONDS < LOST_AFTER
    monkeypatch.setattr(access, "CHECK_SECONDS", 0.3)
    time.sleep(0.1)
    run = ada.start("Draw something slow [offline: stall]", agent_key="designer")
    share(ada, run["conversation_id"])
    key = member.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"]
    with (
        Follower(ada, run["id"], ada.http.headers["Authorization"]) as kept,
        Follower(member, run["id"], f"Bearer {key}") as lost,
    ):
        time.sleep(1)
        assert not lost.ended.is_set()
        take_away(ada, member, run["conversation_id"])
        assert lost.ended.wait(LOST_AFTER * timeouts.SCALE)
        assert not kept.ended.is_set()
        assert ada.http.put(f"/v1/runs/{run['id']}/cancellation").status_code == 202
        assert kept.ended.wait(timeouts.PATIENCE)
    assert "run.cancelled" in kept.text
    assert "run.cancelled" not in lost.text


class Follower:
    """Reads a run's events in a thread until they end."""

    def __init__(self, user: ApiUser, run_id: str, authorization: str) -> None:
        self.ended = threading.Event()
        self.text = ""
        self._begun = threading.Event()
        self._address = f"{user.base_url}/v1/runs/{run_id}/events"
        self._headers = {"Authorization": authorization}
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        assert self._begun.wait(timeouts.PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(timeouts.PATIENCE)

    def _read(self) -> None:
        with httpx.stream("GET", self._address, headers=self._headers, timeout=60) as answer:
            for line in answer.iter_lines():
                self._begun.set()
                self.text += line
        self.ended.set()


def drawn_by(user: ApiUser, **fields: Any) -> tuple[str, str, str]:
    """Ids of a finished run, its image and its conversation."""
    events = user.draw(**fields)
    run = one(events, "run.completed")["run"]
    return run["id"], one(events, "attachment.created")["attachment"]["object_id"], run["conversation_id"]


def share(user: ApiUser, conversation: str, visibility: str = "tenant") -> dict[str, Any]:
    answer = user.http.patch(f"/v1/conversations/{conversation}", json={"visibility": visibility})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def listed(user: ApiUser, **query: Any) -> list[str]:
    return [one["id"] for one in user.http.get("/v1/conversations", params=query).json()["data"]]


def kinds_of(user: ApiUser, run: str) -> list[str]:
    return [event["type"] for event in user.events(run)]
