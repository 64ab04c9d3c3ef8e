"""Whatever the provider does, a run ends once, says why in our words, buys nothing twice, and the next turn works."""

import json
import os
import random
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.app_server import ApiUser, AppServer, Event, kinds, one, running_server
from tests.conftest import Postgres
from tests.results import Results

IDLE_SECONDS = 1.0
TERMINAL = ("run.completed", "run.failed", "run.cancelled")


@dataclass(frozen=True)
class Ending:
    """`error`: the failed run's code. `not_stored`: the code of the image that is missing from a completed run.

    `posts` counts the requests for a response.
    """

    error: str | None = None
    not_stored: str | None = None
    images: int = 0
    retryable: bool = False
    posts: int = 1


# The stream breaks: an answer that the provider finishes in the background is taken up again, any other is lost.
BREAKS = {
    "cut": Ending(error="upstream_disconnected", images=1, retryable=True),
    "eof": Ending(error="upstream_disconnected", images=1, retryable=True),
    "silence": Ending(error="upstream_timeout", images=1, retryable=True),
}
FAULTS = {
    # The whole run fails
    "moderation_400": Ending(error="moderation_blocked"),
    # Nothing was accepted, so it is asked once more after Retry-After.
    "rate_limit": Ending(error="upstream_rate_limited", retryable=True, posts=2),
    "rate_limit] [offline: retry_after=300": Ending(error="upstream_rate_limited", retryable=True),
    "http=429": Ending(error="upstream_rate_limited", retryable=True),
    "quota": Ending(error="upstream_quota"),
    "reset": Ending(error="upstream_disconnected", retryable=True),
    "failed": Ending(error="upstream_failed", retryable=True),
    "failed=late": Ending(error="upstream_failed", images=1, retryable=True),
    "incomplete": Ending(error="upstream_incomplete", images=1, retryable=True),
    "garbage": Ending(error="upstream_unreadable", retryable=True),
    "stall": Ending(error="upstream_timeout", retryable=True),
    "error_event": Ending(error="upstream_failed", retryable=True),
    "http=401": Ending(error="upstream_unauthorized"),
    "http=404": Ending(error="upstream_not_found"),
    "http=408": Ending(error="upstream_timeout", retryable=True),
    "http=409": Ending(error="upstream_conflict", retryable=True),
    "http=418": Ending(error="upstream_rejected"),
    "http=500": Ending(error="upstream_unavailable", retryable=True),
    "http=503": Ending(error="upstream_unavailable", retryable=True),
    # Only the image fails
    "moderation": Ending(not_stored="moderation_blocked"),
    "no_final": Ending(not_stored="image_generation_failed", retryable=True),
    "truncated": Ending(not_stored="image_unreadable"),
    "not_an_image": Ending(not_stored="image_unreadable"),
    # Odd, but nothing fails
    "wrong_type": Ending(images=1),
    "no_text": Ending(images=1),
    "text_only": Ending(),
    "refusal": Ending(),
    "nul": Ending(images=1),
    "duplicate_seq": Ending(images=1),
    "no_seq": Ending(images=1),
    **dict.fromkeys(BREAKS, Ending(images=1)),
}


@pytest.fixture(scope="module")
def server(
    postgres: Postgres, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[AppServer]:
    """One service for all faults: what one leaves behind must not harm the next."""
    with _impatient_server(postgres, migrated_template, provider_url, tmp_path_factory, background=True) as server:
        yield server


@pytest.fixture(scope="module")
def server_without_background(
    postgres: Postgres, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[AppServer]:
    with _impatient_server(postgres, migrated_template, provider_url, tmp_path_factory, background=False) as server:
        yield server


@contextmanager
def _impatient_server(
    postgres: Postgres, template: str, provider_url: str, directories: pytest.TempPathFactory, *, background: bool
) -> Generator[AppServer]:
    """It gives up a silent provider after `IDLE_SECONDS`."""
    settings: dict[str, Any] = {"upstream_background": background, "upstream_idle_seconds": IDLE_SECONDS}
    with (
        postgres.database(template) as database_url,
        running_server(database_url, provider_url, directories.mktemp("faults"), **settings) as server,
    ):
        yield server


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_provider_ends_the_run_once(server: AppServer, provider_url: str, fault: str) -> None:
    assert_borne(server, provider_url, fault, FAULTS[fault])


@pytest.mark.parametrize("fault", BREAKS)
def test_an_answer_that_nobody_finishes_is_given_up(
    server_without_background: AppServer, provider_url: str, fault: str
) -> None:
    assert_borne(server_without_background, provider_url, fault, BREAKS[fault])


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_every_fault_ends_a_run_once_in_any_order(
    server: AppServer, server_without_background: AppServer, provider_url: str, results: Results
) -> None:
    cases = [(server, *case) for case in FAULTS.items()]
    cases += [(server_without_background, *case) for case in BREAKS.items()]
    seed = int(os.environ.get("EASEL_SEED", random.randrange(10**6)))
    random.Random(seed).shuffle(cases)
    for place, fault, expected in cases:
        assert_borne(place, provider_url, fault, expected)
    tried = f"{len(FAULTS)} faults in background mode, {len(BREAKS)} without"
    results(6, "upstream faults", tried=tried, kept=f"{len(cases)} with one end and no second purchase", seed=seed)


def assert_borne(server: AppServer, provider_url: str, fault: str, expected: Ending) -> None:
    ada = server.sign_up("Ada's")
    word = f"w{uuid.uuid4().hex}"
    events = ada.draw(f"Draw a house called {word} [offline: {fault}]")
    assert_ended(events, expected)
    assert_kept(ada, events, expected)
    assert posts_with(provider_url, word) == expected.posts
    assert_next_turn_works(ada, events)


def test_a_refusal_is_read_as_text(server: AppServer) -> None:
    events = server.sign_up("Ada's").draw("Draw a house [offline: refusal]")
    text = "".join(event["delta"] for event in events if event["type"] == "text.delta")
    assert text
    assert one(events, "message.completed")["message"]["text"] == text


def test_an_image_of_another_type_is_stored_as_what_it_is(server: AppServer) -> None:
    events = server.sign_up("Ada's").draw("Draw a house [offline: wrong_type]")
    attachment = one(events, "attachment.created")["attachment"]
    assert attachment["mime_type"] == "image/jpeg"
    assert attachment["filename"].endswith(".jpg")
    assert httpx.get(attachment["url"]).headers["content-type"] == "image/jpeg"


def assert_ended(events: list[Event], expected: Ending) -> None:
    """One terminal event, at the end, and with the right reason."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [kind for kind in kinds(events) if kind in TERMINAL] == kinds(events)[-1:]
    last = events[-1]
    if expected.error is None:
        assert last["type"] == "run.completed", last.get("error")
        assert last["run"]["error"] is None
        return
    assert last["type"] == "run.failed"
    assert (last["error"]["code"], last["error"]["retryable"]) == (expected.error, expected.retryable)
    assert last["error"]["message"]
    assert last["run"]["error"] == last["error"]


def assert_kept(ada: ApiUser, events: list[Event], expected: Ending) -> None:
    """What was drawn is stored, and announced, even where the run fails later."""
    created = [event["attachment"] for event in events if event["type"] == "attachment.created"]
    assert len(created) == expected.images
    failed = [event for event in events if event["type"] == "attachment.failed"]
    assert [event["code"] for event in failed] == ([expected.not_stored] if expected.not_stored else [])
    for event in failed:
        assert event["retryable"] is expected.retryable
        assert event["detail"]
    listed = ada.http.get("/v1/attachments").json()["data"]
    assert [row["object_id"] for row in listed] == [attachment["object_id"] for attachment in created]
    if expected.error is None:
        attached = one(events, "message.completed")["message"]["attachments"]
        told = [*(attachment["object_id"] for attachment in created), *(event["object_id"] for event in failed)]
        assert sorted(row["object_id"] for row in attached) == sorted(told)


def assert_next_turn_works(ada: ApiUser, events: list[Event]) -> None:
    conversation_id = one(events, "run.created")["run"]["conversation_id"]
    following = ada.ask("Hello", conversation_id=conversation_id)
    assert kinds(following)[-1] == "run.completed", following[-1]
    assert one(following, "message.completed")["message"]["text"]


def posts_with(provider_url: str, word: str) -> int:
    """How many responses were asked for with that word in their input."""
    requests: list[dict[str, Any]] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    posts = [request for request in requests if (request["method"], request["path"]) == ("POST", "/v1/responses")]
    return sum(word in json.dumps(post["body"]) for post in posts)
