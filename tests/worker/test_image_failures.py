"""What users get when an image does not come, or comes otherwise: in plain words, once, and the text arrives."""

import json
import uuid
from datetime import date
from typing import Any

import httpx
import pytest

from app.agents._shared.registry import load_registry
from app.settings import Settings
from tests.app_server import ApiUser, Event, kinds, one

Json = dict[str, Any]


@pytest.mark.parametrize(
    ("stage", "refused"), [("input", "refused what was asked for"), ("output", "refused the image that was drawn")]
)
def test_a_moderated_image_says_at_which_stage_and_why(
    ada: ApiUser, provider_url: str, stage: str, refused: str
) -> None:
    word = f"w{uuid.uuid4().hex}"
    failed = failure_in(ada.draw(f"Draw a house called {word} [offline: moderation={stage}]"))
    assert (failed["code"], failed["retryable"]) == ("moderation_blocked", False)
    assert refused in failed["detail"]
    assert "(violence)" in failed["detail"]
    assert len(posts_with(provider_url, word)) == 1


def test_a_request_refused_at_the_door_says_so_too(ada: ApiUser, provider_url: str) -> None:
    word = f"w{uuid.uuid4().hex}"
    events = ada.draw(f"Draw a house called {word} [offline: moderation_400]")
    error = events[-1]["error"]
    assert (error["code"], error["retryable"]) == ("moderation_blocked", False)
    assert "refused what was asked for (violence)" in error["message"]
    assert len(posts_with(provider_url, word)) == 1


@pytest.mark.parametrize(
    ("code", "retryable", "advice"),
    [("invalid_value", False, ": change what you ask for."), ("server_error", True, ": try again.")],
)
def test_an_error_of_the_provider_s_image_says_whether_another_try_helps(
    ada: ApiUser, code: str, advice: str, *, retryable: bool
) -> None:
    failed = failure_in(ada.draw(f"Draw a house [offline: image_error={code}]"))
    assert (failed["code"], failed["retryable"]) == ("image_generation_failed", retryable)
    assert failed["detail"].endswith(advice)
    assert "could not be made" not in failed["detail"], "these are the provider's words"


def test_previews_without_an_image_are_reported_as_an_image_that_never_came(ada: ApiUser) -> None:
    events = ada.draw("Draw a house [offline: no_final=quiet]", image={"partial_images": 2})
    assert kinds(events).count("image.partial") == 2
    failed = failure_in(events)
    assert (failed["code"], failed["retryable"]) == ("image_missing", True)
    assert failed["tool_call_id"] == one(events, "tool.started")["tool_call_id"]
    assert ada.http.get("/v1/attachments").json()["data"] == []


def test_a_preview_comes_before_the_failure_of_its_image(ada: ApiUser) -> None:
    events = ada.draw("Draw a house [offline: no_final]", image={"partial_images": 2})
    told = [kind for kind in kinds(events) if kind in ("image.partial", "attachment.failed")]
    assert told == ["image.partial", "image.partial", "attachment.failed"]


def test_a_forced_image_that_was_not_drawn_is_reported(ada: ApiUser) -> None:
    events = ada.draw("Draw a house [offline: text_only]", tool_choice="image_generation")
    failed = failure_in(events)
    assert (failed["code"], failed["retryable"], failed["tool_call_id"]) == ("image_not_drawn", True, None)
    unforced = ada.draw("Draw a house [offline: text_only]")
    assert "attachment.failed" not in kinds(unforced)


def test_two_images_of_one_turn_may_differ_in_size(ada: ApiUser) -> None:
    events = ada.draw("Draw a fox [offline: two]", image={"size": "auto"})
    created = [event["attachment"] for event in events if event["type"] == "attachment.created"]
    assert sorted((made["width"], made["height"]) for made in created) == [(1024, 1024), (1536, 1024)]
    assert len({made["tool_call_id"] for made in created}) == len({made["sha256"] for made in created}) == 2
    for made in created:
        assert httpx.get(made["url"]).headers["content-length"] == str(made["size_bytes"])
    shown = one(events, "message.completed")["message"]["attachments"]
    assert {made["object_id"] for made in shown} == {made["object_id"] for made in created}


def test_an_image_without_a_word_is_an_answer_and_is_paid_once(ada: ApiUser, provider_url: str) -> None:
    word = f"w{uuid.uuid4().hex}"
    events = ada.draw(f"Draw a house called {word} [offline: no_text]")
    message = one(events, "message.completed")["message"]
    assert message["text"] == ""
    assert [made["object_id"] for made in message["attachments"]] == [
        one(events, "attachment.created")["attachment"]["object_id"]
    ]
    assert "text.delta" not in kinds(events)
    assert len(posts_with(provider_url, word)) == 1


def test_every_call_of_a_turn_names_the_same_unnamed_person(ada: ApiUser, provider_url: str) -> None:
    word = f"w{uuid.uuid4().hex}"
    events = ada.ask(f"What time is it, {word}? [offline: call=current_time]")
    assert "tool.completed" in kinds(events)
    run_calls = posts_since(provider_url, word)
    assert len(run_calls) == 2
    (identifier,) = {call["safety_identifier"] for call in run_calls}
    assert len(identifier) == 64
    assert ada.email not in json.dumps(run_calls)


def test_a_retiring_conversation_model_is_reported_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_DEFAULT_MODEL", "gpt-5")
    monkeypatch.setenv("AGENT_CODE_MODEL", "gpt-5.1-codex")
    settings = Settings(_env_file=None)  # pyright: ignore[reportCallIssue]  # pydantic-settings hides it from the types
    before = load_registry(settings, today=date(2026, 12, 10)).warnings
    after = load_registry(settings, today=date(2026, 12, 11)).warnings
    assert "agent 'assistant': gpt-5 will be shut down on 2026-12-11; move to gpt-6.1-sol before." in before
    assert "agent 'designer': gpt-5.1-codex was shut down on 2026-12-11; use gpt-6.1-sol." in after


def failure_in(events: list[Event]) -> Event:
    """The one failure of a turn that has completed all the same, with its text."""
    assert events[-1]["type"] == "run.completed"
    message = one(events, "message.completed")["message"]
    assert message["text"]
    failed = one(events, "attachment.failed")
    (shown,) = message["attachments"]
    assert (shown["object_id"], shown["status"], shown["url"]) == (failed["object_id"], "failed", None)
    assert shown["error"] == {name: failed[name] for name in ("code", "detail", "retryable")}
    assert kinds(events).index("attachment.failed") < kinds(events).index("message.completed")
    assert failed["detail"].endswith((".", ")"))
    return failed


def posts_with(provider_url: str, word: str) -> list[Json]:
    """The bodies of the responses asked for with that word in them."""
    return [body for body in posts(provider_url) if word in json.dumps(body)]


def posts_since(provider_url: str, word: str) -> list[Json]:
    """The bodies of the responses asked for since that word was first said."""
    bodies = posts(provider_url)
    return bodies[next(place for place, body in enumerate(bodies) if word in json.dumps(body)) :]


def posts(provider_url: str) -> list[Json]:
    requests: list[Json] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    return [
        request["body"] for request in requests if (request["method"], request["path"]) == ("POST", "/v1/responses")
    ]
