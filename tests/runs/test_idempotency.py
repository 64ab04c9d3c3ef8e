"""Promise 5: however often a request with one `Idempotency-Key` is sent, it starts one run, and is answered alike."""

# ruff: noqa: T201 - the suite prints its numbers

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
import redis
from sqlalchemy import text

from app.db import Database, now
from app.main import EXPOSED_HEADERS
from app.runs.schemas import RunView
from tests import timeouts
from tests.app_server import ApiUser, AppServer, Event, events_of, kinds, running_server
from tests.conftest import Postgres
from tests.results import Results
from tests.servers import redis_server
from tests.tables import rows

AT_ONCE = 50
LATER = 10
KEPT_HEADERS = ("content-type", "location", "x-run-id")
STREAM = {"Accept": "text/event-stream"}

INVALID_KEYS = {"empty": "", "long": "k" * 256, "with a space": "two words", "not ASCII": "schlüssel", "a tab": "a\tb"}

# What is refused before anything is done, and why.
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "not as it should be": ({"input": ""}, 422, "invalid_request"),
    "an unknown agent": ({"agent_key": "sculptor"}, 422, "unknown_agent"),
    "an unknown conversation": ({"conversation_id": str(UUID(int=7))}, 404, "not_found"),
}


@pytest.fixture(scope="module")
def database_url(postgres: Postgres, migrated_template: str) -> Generator[str]:
    with postgres.database(migrated_template) as url:
        yield url


@pytest.fixture(scope="module")
def server(database_url: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[AppServer]:
    """One service for all: every test has users and keys of its own."""
    with running_server(database_url, provider_url, tmp_path_factory.mktemp("idempotency")) as server:
        yield server


@pytest.fixture
def new_database_url(postgres: Postgres, migrated_template: str) -> Generator[str]:
    """For the tests that have a service of their own."""
    with postgres.database(migrated_template) as url:
        yield url


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=[pytest.mark.prove, pytest.mark.timeout(300)])])
async def test_one_key_starts_one_run_however_often_it_is_sent(
    server: AppServer, ada: ApiUser, database_url: str, provider_url: str, rounds: int, results: Results
) -> None:
    for _ in range(rounds):
        before = await asyncio.to_thread(runs_of, ada, database_url)
        word, key = f"w{secrets.token_hex(8)}", new_key()
        async with client_of(server, ada) as client:
            answers = await asyncio.gather(*(send(client, key, input=f"Say {word}") for _ in range(AT_ONCE)))
            answers += [await send(client, key, input=f"Say {word}") for _ in range(LATER)]
        accepted = [answer for answer in answers if answer.status_code == 202]
        in_flight = [answer for answer in answers if answer.status_code == 409]
        runs = await asyncio.to_thread(runs_of, ada, database_url) - before
        await asyncio.to_thread(ada.events, accepted[0].json()["id"])
        bought = await asyncio.to_thread(posts_with, provider_url, word)
        assert (runs, bought) == (1, 1)
        assert len(accepted) + len(in_flight) == len(answers)
        assert len(accepted) - replays(accepted) == 1
        assert len({seen(answer) for answer in accepted}) == 1
        assert {problem(answer, 409)["code"] for answer in in_flight} <= {"idempotency_in_flight"}
        assert {answer.status_code for answer in answers[-LATER:]} == {202}
    tried = f"{rounds} keys, {AT_ONCE} concurrent and {LATER} later requests each"
    results(5, "Idempotency-Key", tried=tried, kept=f"{rounds} with 1 run and 1 upstream call")


def test_a_replay_is_the_first_answer_though_the_run_has_ended(ada: ApiUser) -> None:
    key = new_key()
    first = post(ada, key)
    assert "idempotent-replayed" not in first.headers
    ada.events(first.json()["id"])
    assert ada.http.get(first.headers["location"]).json()["status"] == "completed"
    again = post(ada, key)
    assert seen(again) == seen(first)
    assert again.json()["status"] == "queued"
    assert again.headers["idempotent-replayed"] == "true"
    assert "Idempotent-Replayed" in EXPOSED_HEADERS


def test_the_same_body_in_other_words_is_the_same_body(ada: ApiUser) -> None:
    key = new_key()
    first = post(ada, key, image={"size": "1024x1024", "quality": "low"}, agent_key="designer")
    again = post(
        ada,
        key,
        agent_key="designer",
        image={"quality": "low", "size": "1024x1024"},
        conversation_id=None,
        tool_choice=None,
    )
    assert seen(again) == seen(first)


def test_a_key_with_another_body_is_refused(ada: ApiUser, database_url: str) -> None:
    key = new_key()
    first = post(ada, key)
    received = problem(post(ada, key, input="Something else"), 422)
    assert received["code"] == "idempotency_key_reused"
    assert [fault["field"] for fault in received["errors"]] == ["Idempotency-Key"]
    assert seen(post(ada, key)) == seen(first)
    assert runs_of(ada, database_url) == 1


def test_without_a_key_every_request_starts_a_run(ada: ApiUser, database_url: str) -> None:
    assert seen(post(ada, None)) != seen(post(ada, None))
    assert runs_of(ada, database_url) == 2


@pytest.mark.parametrize("name", INVALID_KEYS)
def test_a_key_that_is_none_is_refused_by_its_header(ada: ApiUser, database_url: str, name: str) -> None:
    received = problem(post(ada, INVALID_KEYS[name]), 422)
    (fault,) = received["errors"]
    assert fault["field"] == "Idempotency-Key"
    assert "1 to 255 visible ASCII characters" in received["detail"]
    assert runs_of(ada, database_url) == 0


def test_the_longest_key_and_the_oddest_characters_are_taken(ada: ApiUser) -> None:
    for key in ("k" * 255, "!", "".join(map(chr, range(0x21, 0x7F)))):
        assert seen(post(ada, key)) == seen(post(ada, key))


async def test_a_key_in_flight_is_reported_at_once_to_whom_it_concerns(
    server: AppServer, ada: ApiUser, stranger: ApiUser, database_url: str
) -> None:
    started = await asyncio.to_thread(ada.start, "Hello")
    await asyncio.to_thread(ada.events, started["id"])
    fields, key = {"conversation_id": started["conversation_id"]}, new_key()
    async with client_of(server, ada) as client:
        async with conversation_held(database_url, started["conversation_id"]):
            first = asyncio.create_task(send(client, key, **fields))
            await until_somebody_waits(database_url)
            began = time.monotonic()
            received = problem(answer := await send(client, key, **fields), 409)
            waited = time.monotonic() - began
            assert (await asyncio.to_thread(post, stranger, key)).status_code == 202
            assert not first.done()
        print(f"promise 5: a key in flight is answered after {waited * 1000:.0f} ms")
        assert received["code"] == "idempotency_in_flight"
        assert answer.headers["retry-after"] == "1"
        assert waited < 1
        assert seen(await send_until_accepted(client, key, **fields)) == seen(await first)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_not_remembered(ada: ApiUser, name: str) -> None:
    fields, status, code = REFUSED[name]
    key = new_key()
    assert problem(post(ada, key, **fields), status)["code"] == code
    assert post(ada, key).status_code == 202


def test_a_busy_conversation_is_not_remembered(ada: ApiUser) -> None:
    key = new_key()
    run = ada.start("Draw a slow house [offline: stall]", agent_key="designer")
    fields = {"conversation_id": run["conversation_id"], "agent_key": "assistant"}
    assert problem(post(ada, key, **fields), 409)["code"] == "conversation_busy"
    assert ada.http.put(f"/v1/runs/{run['id']}/cancellation").status_code == 202
    ada.events(run["id"])
    accepted = post(ada, key, **fields)
    assert accepted.status_code == 202
    assert "idempotent-replayed" not in accepted.headers


@pytest.mark.slow
async def test_a_fault_of_the_database_is_not_remembered(
    new_database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.pool.STATEMENT_SECONDS", timeouts.ALIVE)
    with running_server(new_database_url, provider_url, tmp_path) as server:
        ada, key = await asyncio.to_thread(server.sign_up), new_key()
        run = await asyncio.to_thread(ada.start, "Hello")
        await asyncio.to_thread(ada.events, run["id"])
        conversation_id = run["conversation_id"]
        async with conversation_held(new_database_url, conversation_id):
            refused = await asyncio.to_thread(post, ada, key, conversation_id=conversation_id)
            assert problem(refused, 503)["code"] == "unavailable"
        accepted = await asyncio.to_thread(post, ada, key, conversation_id=conversation_id)
        assert accepted.status_code == 202
        assert "idempotent-replayed" not in accepted.headers


def test_a_key_is_forgotten_after_24_hours(ada: ApiUser, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    first = post(ada, key)
    day = timedelta(hours=24)
    monkeypatch.setattr("app.runs.idempotency.now", lambda: now() + day - timedelta(minutes=1))
    assert seen(post(ada, key)) == seen(first)
    monkeypatch.setattr("app.runs.idempotency.now", lambda: now() + day + timedelta(minutes=1))
    second = post(ada, key, input="Something else")
    assert second.status_code == 202
    assert second.json()["id"] != first.json()["id"]
    assert seen(post(ada, key, input="Something else")) == seen(second)
    assert (runs_of(ada, database_url), keys_of(ada, database_url)) == (2, 1)


@pytest.mark.slow
def test_expired_keys_are_deleted_by_a_task_and_others_stay(
    new_database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with running_server(new_database_url, provider_url, tmp_path) as server:
        for user in (server.sign_up("Ada's"), server.sign_up("Bob's")):
            post(user, "goes")
            post(user, "stays")
    past = "UPDATE idempotency_keys SET expires_at = now() - interval '1 second' WHERE key = 'goes'"
    rows(new_database_url, past)
    with running_server(new_database_url, provider_url, tmp_path):
        deadline = time.monotonic() + timeouts.PATIENCE
        while (kept := rows(new_database_url, "SELECT key FROM idempotency_keys")) != [("stays",)] * 2:
            assert time.monotonic() < deadline, kept
            time.sleep(0.05)


def test_a_colleague_and_a_stranger_have_keys_of_their_own(ada: ApiUser, stranger: ApiUser, database_url: str) -> None:
    key = new_key()
    tenant_id = ada.signed_up["tenant"]["id"]
    mine, theirs = post(ada, key), post(stranger, key)
    colleague = (
        "INSERT INTO memberships (tenant_id, user_id, role, created_at) VALUES (:tenant, :user, 'member', now())"
    )
    rows(database_url, colleague, {"tenant": tenant_id, "user": stranger.signed_up["user"]["id"]})
    stranger.http.headers["X-Tenant-Id"] = tenant_id
    colleagues = post(stranger, key, input="Something else")
    answers = (mine, theirs, colleagues)
    assert {answer.status_code for answer in answers} == {202}
    assert replays(list(answers)) == 0
    assert len({answer.json()["id"] for answer in answers}) == 3
    assert seen(post(ada, key)) == seen(mine)


def test_a_replayed_stream_is_the_same_runs_events(ada: ApiUser) -> None:
    key = new_key()
    first, events = stream(ada, key)
    again, replayed = stream(ada, key)
    assert (again.status_code, again.headers["x-run-id"]) == (200, first.headers["x-run-id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert replayed == events
    assert stream(ada, key, after=3)[1] == events[3:]
    assert stream(ada, key, after=len(events))[0].status_code == 204
    received = post(ada, key)
    assert (received.status_code, received.json()["id"]) == (202, first.headers["x-run-id"])


def test_a_replayed_stream_joins_a_run_that_goes_on(ada: ApiUser) -> None:
    key = new_key()
    body = {"input": "Draw a slow house [offline: stall]", "agent_key": "designer"}
    run = post(ada, key, **body).json()
    with ada.http.stream("POST", "/v1/runs", json=body, headers={**STREAM, "Idempotency-Key": key}) as answer:
        assert answer.headers["x-run-id"] == run["id"]
        events = events_of(answer)
        assert next(events)["type"] == "run.created"
        assert ada.http.put(f"/v1/runs/{run['id']}/cancellation").status_code == 202
        assert kinds(list(events))[-1] == "run.cancelled"


def test_a_replayed_stream_is_replayed_from_the_rows_once_the_live_one_has_expired(
    new_database_url: str,
    provider_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.runs.reader.HEARTBEAT_SECONDS", 0.3)
    (tmp_path / "redis").mkdir()
    with (
        redis_server(tmp_path / "redis") as broker,
        running_server(new_database_url, provider_url, tmp_path, redis_url=broker.url) as server,
    ):
        ada, key = server.sign_up("Ada's"), new_key()
        first, events = stream(ada, key)
        # redis-py's answers have no types of their own.
        with cast(Any, redis.Redis).from_url(broker.url) as client:
            assert client.delete(f"easel:run:{first.headers['x-run-id']}") == 1
        again, received = stream(ada, key)
        assert again.headers["x-run-id"] == first.headers["x-run-id"]
        assert [event["seq"] for event in received] == list(range(1, len(received) + 1))
        assert (kinds(received)[0], received[-1]["run"]) == ("run.created", events[-1]["run"])
        assert stream(ada, key, after=1)[1] == received
        assert stream(ada, key, after=len(events))[0].status_code == 204


def test_a_run_whose_launch_was_lost_is_swept_up_and_launched_once(
    new_database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[UUID] = []

    async def lose(broker: object, tenant_id: UUID, run: RunView) -> None:
        launched.append(run.id)
        raise ConnectionError

    monkeypatch.setattr("app.runs.service.launch", lose)
    monkeypatch.setattr("app.worker.housekeeping.LOOK_EVERY", timedelta(seconds=0.3))
    with running_server(new_database_url, provider_url, tmp_path) as server:
        ada, key = server.sign_up("Ada's"), new_key()
        first = post(ada, key)
        assert seen(post(ada, key)) == seen(first)
        assert kinds(stream(ada, key)[1])[-1] == "run.completed"
        assert launched == [UUID(first.json()["id"])]
        assert runs_of(ada, new_database_url) == 1


def test_a_deleted_conversation_takes_its_keys_along(ada: ApiUser, database_url: str) -> None:
    key, other = new_key(), new_key()
    run = post(ada, key).json()
    ada.events(run["id"])
    follow_up = {"conversation_id": run["conversation_id"]}
    ada.events(post(ada, other, **follow_up).json()["id"])
    assert ada.http.delete(f"/v1/conversations/{run['conversation_id']}").status_code == 204
    assert keys_of(ada, database_url) == 0
    assert problem(post(ada, other, **follow_up), 404)["code"] == "not_found"
    anew = post(ada, key)
    assert anew.status_code == 202
    assert anew.json()["id"] != run["id"]


def new_key() -> str:
    return secrets.token_hex(8)


def post(user: ApiUser, key: str | None, **fields: Any) -> httpx.Response:
    # As bytes: a header that is not ASCII is sent as it is.
    headers = {} if key is None else {b"Idempotency-Key": key.encode()}
    return user.http.post("/v1/runs", json={"input": "Hello", **fields}, headers=headers)


def stream(user: ApiUser, key: str, *, after: int | None = None) -> tuple[httpx.Response, list[Event]]:
    headers = {**STREAM, "Idempotency-Key": key, **({} if after is None else {"Last-Event-ID": str(after)})}
    with user.http.stream("POST", "/v1/runs", json={"input": "Hello"}, headers=headers) as answer:
        return answer, list(events_of(answer))


def seen(answer: httpx.Response) -> tuple[Any, ...]:
    """What a replay must repeat: the status, the body's bytes, the headers that name the run."""
    assert answer.status_code == 202, answer.text
    return (answer.status_code, answer.content, *(answer.headers[name] for name in KEPT_HEADERS))


def replays(answers: list[httpx.Response]) -> int:
    return sum(answer.headers.get("idempotent-replayed") == "true" for answer in answers)


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "idempotent-replayed" not in answer.headers
    return cast(dict[str, Any], answer.json())


def runs_of(user: ApiUser, url: str) -> int:
    return _count("SELECT count(*) FROM runs WHERE user_id = :user", user, url)


def keys_of(user: ApiUser, url: str) -> int:
    return _count("SELECT count(*) FROM idempotency_keys WHERE user_id = :user", user, url)


def _count(statement: str, user: ApiUser, url: str) -> int:
    ((count,),) = rows(url, statement, {"user": user.signed_up["user"]["id"]})
    return int(count)


def posts_with(provider_url: str, word: str) -> int:
    """How many responses were asked for with that word in their input."""
    requests: list[dict[str, Any]] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    posts = [request for request in requests if (request["method"], request["path"]) == ("POST", "/v1/responses")]
    return sum(word in json.dumps(post["body"]) for post in posts)


def client_of(server: AppServer, user: ApiUser) -> httpx.AsyncClient:
    headers = {"Authorization": user.http.headers["Authorization"]}
    return httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=30)


async def send(client: httpx.AsyncClient, key: str, **fields: Any) -> httpx.Response:
    return await client.post("/v1/runs", json={"input": "Hello", **fields}, headers={"Idempotency-Key": key})


async def send_until_accepted(client: httpx.AsyncClient, key: str, **fields: Any) -> httpx.Response:
    """As a client does that is asked to come again."""
    async with asyncio.timeout(timeouts.PATIENCE):
        while (answer := await send(client, key, **fields)).status_code == 409:
            await asyncio.sleep(0.05)
        return answer


@asynccontextmanager
async def conversation_held(url: str, conversation_id: str) -> AsyncGenerator[None]:
    """Whoever wants to lock the conversation waits for the end of this block."""
    database = Database(url, pool_size=1)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        connection = await stack.enter_async_context(database.engine.begin())
        lock = text("SELECT FROM conversations WHERE id = :id FOR UPDATE")
        await connection.execute(lock, {"id": conversation_id})
        yield


async def until_somebody_waits(url: str) -> None:
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(timeouts.PATIENCE):
        while not await asyncio.to_thread(rows, url, waiting):
            await asyncio.sleep(0.02)
