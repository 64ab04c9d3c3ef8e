"""What becomes of a run whose conversation has another one open: refused, queued behind it, or started in its place."""

import asyncio
import json
import time
import uuid
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.db import Database, uuid7
from app.runs import reader
from app.runs.models import Run
from app.worker import housekeeping
from tests import timeouts
from tests.app_server import ApiUser, AppServer, Event, events_of, kinds, one, running_server
from tests.tables import rows

# Enough for a run that waits for nothing.
END_SECONDS = 1.5
LIMIT = 4
CONVERSATION_LIKE_IT = """
INSERT INTO conversations SELECT (jsonb_populate_record(it, jsonb_build_object('id', CAST(:id AS uuid)))).*
FROM conversations AS it WHERE id = :like
"""
MESSAGE_LIKE_IT = """
INSERT INTO messages SELECT (jsonb_populate_record(it, jsonb_build_object(
'id', CAST(:id AS uuid), 'run_id', gen_random_uuid(), 'conversation_id', CAST(:talk AS uuid)))).*
FROM messages AS it WHERE run_id = :like
"""
QUEUED_RUN_LIKE_IT = """
INSERT INTO runs SELECT (jsonb_populate_record(it, jsonb_build_object('id', gen_random_uuid(), 'status', 'queued',
'attempt', 0, 'calling_turn', 0, 'response_id', NULL, 'output_message_id', gen_random_uuid(),
'conversation_id', CAST(:talk AS uuid), 'input_message_id', CAST(:message AS uuid)))).*
FROM runs AS it WHERE id = :like RETURNING id
"""
SLOW = "Draw a house [offline: slow=1.5]"


def test_a_busy_conversation_is_refused_with_the_run_that_keeps_it_busy(ada: ApiUser) -> None:
    running = ada.start(SLOW, agent_key="designer")
    answer = ada.http.post("/v1/runs", json={"input": "And?", "conversation_id": running["conversation_id"]})
    assert answer.status_code == 409
    assert (answer.json()["code"], answer.json()["run_id"]) == ("conversation_busy", running["id"])
    assert len(ada.messages(running["conversation_id"])) == 1
    stop(ada, running)


@pytest.mark.slow
def test_queued_runs_follow_one_another_and_each_goes_on_from_the_last(ada: ApiUser, provider_url: str) -> None:
    word = f"w{uuid.uuid4().hex}"
    first = ada.start(f"Draw a house called {word}", agent_key="designer")
    queued = [queue(ada, first, f"Draw boat {number} for {word}") for number in range(3)]
    assert [run["status"] for run in queued] == ["queued"] * 3
    received = [ada.events(run["id"]) for run in [first, *queued]]
    assert [kinds(events)[-1] for events in received] == ["run.completed"] * 4
    for before, after in pairwise(received):
        assert before[-1]["run"]["finished_at"] <= one(after, "run.started")["run"]["started_at"]
    assert [message["role"] for message in ada.messages(first["conversation_id"])] == ["user", "assistant"] * 4
    previous = [body.get("previous_response_id") for body in asked_with(provider_url, word)]
    assert previous[0] is None
    assert len(set(previous)) == 4


def test_a_queued_run_sees_the_answer_that_it_waited_for(ada: ApiUser, provider_url: str) -> None:
    word = f"w{uuid.uuid4().hex}"
    first = ada.start(f"What is {word}? [offline: words=20]")
    second = queue(ada, first, f"Say {word} again")
    ada.events(second["id"])
    heard = one(ada.events(first["id"]), "message.completed")["message"]["text"]
    last = asked_with(provider_url, word)[-1]
    assert last.get("previous_response_id") or heard in json.dumps(last["input"], ensure_ascii=False)


@pytest.fixture
def unswept_server(
    database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[AppServer]:
    """A service that sweeps once, a second after its start, and then long after the test."""
    monkeypatch.setattr(housekeeping, "LOOK_EVERY", housekeeping.DAILY)
    with running_server(
        database_url, provider_url, tmp_path, tenant_concurrency=LIMIT, run_lease_seconds=3600
    ) as server:
        yield server


@pytest.mark.slow
async def test_a_run_that_is_being_queued_as_the_other_ends_is_not_forgotten(
    unswept_server: AppServer, database_url: str
) -> None:
    ada = unswept_server.sign_up("Ada's")
    first = await asyncio.to_thread(ada.start, "Draw a house [offline: slow=0.7]", agent_key="designer")
    database = Database(database_url, pool_size=1)
    second = uuid7()
    async with database.tenant(uuid.UUID(ada.signed_up["tenant"]["id"])) as session:
        # What the API does for a run that is queued, until its commit.
        await session.execute(text("UPDATE conversations SET updated_at = now()"))
        row = await session.get_one(Run, uuid.UUID(first["id"]))
        assert not row.status.ended
        copied = {name: getattr(row, name) for name in ("tenant_id", "conversation_id", "user_id", "agent_key")}
        session.add(Run(**copied, id=second, input_message_id=row.input_message_id, output_message_id=uuid7()))
        await session.flush()
        await asyncio.sleep(END_SECONDS)
    await database.close()
    began = time.monotonic()
    assert kinds(await asyncio.to_thread(ada.events, str(second)))[-1] == "run.completed"
    assert time.monotonic() - began < housekeeping.TURN_EVERY.total_seconds() / 2


def test_a_ready_tenant_gets_all_that_its_limit_allows(unswept_server: AppServer, database_url: str) -> None:
    ada = unswept_server.sign_up("Ada's")
    stalled = {"text": "Draw a house [offline: stall]", "agent_key": "designer"}
    first = ada.start(**stalled)
    for _ in range(LIMIT - 2):
        insert_queued(database_url, first)
    ada.start(**stalled)
    until = time.monotonic() + timeouts.PATIENCE / 3
    while rows(database_url, "SELECT count(*) FROM runs WHERE status = 'running'") != [(LIMIT,)]:
        assert time.monotonic() < until, rows(database_url, "SELECT status FROM runs")
        time.sleep(0.05)


def test_a_run_whose_input_cannot_be_read_fails_and_holds_up_no_other(
    unswept_server: AppServer, database_url: str
) -> None:
    ada = unswept_server.sign_up("Ada's")
    first = ada.start("Hello", agent_key="assistant")
    assert kinds(ada.events(first["id"]))[-1] == "run.completed"
    broken = insert_queued(database_url, first, with_message=False)
    assert kinds(ada.ask("Hello", agent_key="assistant"))[-1] == "run.completed"
    assert one(ada.events(broken), "run.failed")["error"]["code"] == "internal_error"


def insert_queued(database_url: str, like: dict[str, Any], *, with_message: bool = True) -> str:
    """A run in a conversation of its own, committed without its tenant being put into the ready queue; its id."""
    talk, message = uuid.uuid4(), uuid.uuid4()
    rows(database_url, CONVERSATION_LIKE_IT, {"id": talk, "like": like["conversation_id"]})
    if with_message:
        rows(database_url, MESSAGE_LIKE_IT, {"id": message, "talk": talk, "like": like["id"]})
    ((run_id,),) = rows(database_url, QUEUED_RUN_LIKE_IT, {"talk": talk, "message": message, "like": like["id"]})
    return str(run_id)


@pytest.mark.slow
def test_runs_beyond_the_limit_of_their_tenant_follow_as_others_end(unswept_server: AppServer) -> None:
    ada = unswept_server.sign_up("Ada's")
    runs = [ada.start("Hello", agent_key="assistant") for _ in range(3 * LIMIT)]
    began = time.monotonic()
    assert [kinds(ada.events(run["id"]))[-1] for run in runs] == ["run.completed"] * len(runs)
    assert time.monotonic() - began < housekeeping.TURN_EVERY.total_seconds() / 2


@pytest.mark.slow
def test_a_queued_run_that_is_cancelled_ends_at_once_and_the_next_goes_on(ada: ApiUser) -> None:
    first = ada.start(SLOW, agent_key="designer")
    second, third = queue(ada, first, "Draw a boat"), queue(ada, first, "Draw a tree")
    with ada.http.stream("GET", f"/v1/runs/{second['id']}/events") as answer:
        events = events_of(answer)
        assert next(events)["type"] == "run.created"
        began = time.monotonic()
        stop(ada, second)
        assert kinds(list(events)) == ["message.started", "message.completed", "run.cancelled"]
        assert time.monotonic() - began < 1
    assert ada.http.get(f"/v1/runs/{first['id']}").json()["status"] == "running"
    assert kinds(ada.events(third["id"]))[-1] == "run.completed"
    assert kinds(ada.events(first["id"]))[-1] == "run.completed"


@pytest.mark.slow
def test_a_run_that_interrupts_takes_the_place_of_the_running_one_and_its_finished_images_stay(ada: ApiUser) -> None:
    first = ada.start("Draw a house [offline: two] [offline: slow=1.5]", agent_key="designer")
    wait_for(ada, first, "attachment.created")
    second = ada.ask("Draw a boat", conversation_id=first["conversation_id"], if_busy="interrupt")
    assert kinds(second)[-1] == "run.completed"
    stopped = ada.events(first["id"])
    assert kinds(stopped)[-2:] == ["message.completed", "run.cancelled"]
    (kept,) = one(stopped, "message.completed")["message"]["attachments"]
    assert httpx.get(kept["url"]).status_code == 200
    assert stopped[-1]["run"]["finished_at"] <= one(second, "run.started")["run"]["started_at"]


def test_a_run_that_interrupts_ends_those_that_are_queued_as_well(ada: ApiUser) -> None:
    first = ada.start(SLOW, agent_key="designer")
    wait_for(ada, first, "tool.started")
    queued = [queue(ada, first, "Draw a boat"), queue(ada, first, "Draw a tree")]
    last = ada.ask("Draw a cat", conversation_id=first["conversation_id"], if_busy="interrupt")
    assert kinds(last)[-1] == "run.completed"
    assert kinds(ada.events(first["id"]))[-1] == "run.cancelled"
    for run in queued:
        assert kinds(ada.events(run["id"])) == ["run.created", "message.started", "message.completed", "run.cancelled"]


@pytest.mark.slow
def test_a_queued_stream_waits_and_then_delivers(ada: ApiUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "HEARTBEAT_SECONDS", 0.1)
    first = ada.start(SLOW, agent_key="designer")
    body = {"input": "Draw a boat", "conversation_id": first["conversation_id"], "if_busy": "queue"}
    with ada.http.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as answer:
        lines = list(answer.iter_lines())
    received = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert received[:2] == ["run.created", "run.started"]
    assert received[-1] == "run.completed"
    waiting = lines[: lines.index("event: run.started")]
    assert sum(line.startswith(":") for line in waiting) >= 5


def test_a_failed_run_lets_the_next_go_on(ada: ApiUser) -> None:
    first = ada.start("Draw a house [offline: slow=0.5] [offline: failed=late]", agent_key="designer")
    second = queue(ada, first, "Draw a boat")
    assert kinds(ada.events(first["id"]))[-1] == "run.failed"
    began = time.monotonic()
    assert kinds(ada.events(second["id"]))[-1] == "run.completed"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=[pytest.mark.prove, pytest.mark.timeout(300)])])
def test_no_run_is_forgotten_that_is_queued_as_the_one_before_ends(ada: ApiUser, rounds: int) -> None:
    last = ada.start("Hello [offline: words=1]")
    began = time.monotonic()
    for _ in range(rounds):
        last = queue(ada, last, "Hello [offline: words=1]")
        with ada.http.stream("GET", f"/v1/runs/{last['id']}/events") as answer:
            # Right after the text, the run is at its end.
            next(event for event in events_of(answer) if event["type"] == "text.delta")
    assert kinds(ada.events(last["id"]))[-1] == "run.completed"
    # The sweep, which finds what was forgotten, comes after five seconds.
    assert time.monotonic() - began < rounds * 0.5


def queue(user: ApiUser, first: dict[str, Any], text: str) -> dict[str, Any]:
    return user.start(text, conversation_id=first["conversation_id"], if_busy="queue")


def stop(user: ApiUser, run: dict[str, Any]) -> None:
    assert user.http.put(f"/v1/runs/{run['id']}/cancellation").status_code == 202


def wait_for(user: ApiUser, run: dict[str, Any], kind: str) -> Event:
    with user.http.stream("GET", f"/v1/runs/{run['id']}/events") as answer:
        return next(event for event in events_of(answer) if event["type"] == kind)


def asked_with(provider_url: str, word: str) -> list[dict[str, Any]]:
    """What the provider was asked for with that word in it, oldest first."""
    requests: list[dict[str, Any]] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    posts = [request["body"] for request in requests if request["path"] == "/v1/responses"]
    return [body for body in posts if word in json.dumps(body)]
