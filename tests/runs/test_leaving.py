"""Promise 16: whoever leaves stops nothing and leaves nothing behind; whoever cancels stops the provider at once."""

# ruff: noqa: T201 - the suite prints its numbers and its seed

import asyncio
import hashlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import timeouts
from tests.app_server import ApiUser, AppServer, events_of, kinds, one, running_server
from tests.results import Results
from tests.servers import redis_server
from tests.tables import rows

ENDED = ("completed", "failed", "cancelled")
BUSY = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def test_the_stream_of_a_deleted_conversation_ends(ada: ApiUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runs.reader.HEARTBEAT_SECONDS", 0.3)
    run = ada.start("Draw a house [offline: stall]", agent_key="designer")
    with ada.http.stream("GET", f"/v1/runs/{run['id']}/events") as answer:
        lines = answer.iter_lines()
        next(line for line in lines if line == "event: run.started")
        assert ada.http.delete(f"/v1/conversations/{run['conversation_id']}").status_code == 204
        assert "event: run.completed" not in list(lines)


@pytest.mark.parametrize("leavings", [8, pytest.param(100, marks=[pytest.mark.prove, pytest.mark.timeout(600)])])
def test_whoever_leaves_stops_nothing_and_leaves_nothing_behind(
    server: AppServer, ada: ApiUser, database_url: str, leavings: int, results: Results
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    ada.draw()
    tasks_before = tasks_of(server)
    with ThreadPoolExecutor(8) as pool:
        run_ids = list(pool.map(partial(leave, ada), [chance.random() for _ in range(leavings)]))
    assert until(lambda: all(status_of(ada, run_id) in ENDED for run_id in run_ids), timeouts.PATIENCE), f"seed {seed}"
    completed = sum(status_of(ada, run_id) == "completed" for run_id in run_ids)
    stored = sum(has_its_image(ada, run_id) for run_id in run_ids)
    leaked = not until(lambda: tasks_of(server) <= tasks_before, timeouts.NOTHING_LEAKED)
    # The copies of the last image may still be made.
    until(lambda: rows(database_url, f"{BUSY} AND state <> 'idle'") == [(0,)], timeouts.NOTHING_LEAKED)
    ((working,),) = rows(database_url, f"{BUSY} AND state <> 'idle'")
    ((connections,),) = rows(database_url, BUSY)
    results(
        16,
        "clients leave",
        tried=f"{leavings} disconnects",
        kept=f"{completed} runs completed, {stored} images stored, "
        f"{max(tasks_of(server) - tasks_before, 0)} tasks leaked, {working} connections in use",
        seed=seed,
    )
    assert (completed, stored) == (leavings, leavings), f"seed {seed}"
    assert not leaked, f"seed {seed}"
    assert working == 0
    # One more is for checks.
    assert connections <= server.settings.database_pool_size + 1


def leave(ada: ApiUser, moment: float) -> str:
    """Start a run, and hang up within its half second: before, amid or after what it draws."""
    body = {"input": "Draw a red house", "agent_key": "designer"}
    with (
        ada.at(ada.base_url) as client,
        client.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as answer,
    ):
        deadline = time.monotonic() + moment * 0.6
        for _ in answer.iter_raw():
            if time.monotonic() > deadline:
                break
        return answer.headers["X-Run-Id"]


def status_of(user: ApiUser, run_id: str) -> str:
    return str(user.http.get(f"/v1/runs/{run_id}").json()["status"])


def has_its_image(user: ApiUser, run_id: str) -> bool:
    attachment = one(user.events(run_id), "attachment.created")["attachment"]
    content = httpx.get(attachment["url"])
    return content.status_code == 200 and hashlib.sha256(content.content).hexdigest() == attachment["sha256"]


def tasks_of(server: AppServer) -> int:
    assert server.uvicorn.loop is not None
    return len(asyncio.all_tasks(server.uvicorn.loop))


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("background", [True, False], ids=["background", "plain"])
def test_a_cancellation_at_another_process_stops_the_provider_and_keeps_what_is_finished(
    database_url: str, provider_url: str, tmp_path: Path, background: bool
) -> None:
    with redis_server(tmp_path / "redis") as redis:
        shared: dict[str, Any] = {"redis_url": redis.url, "upstream_background": background}
        with (
            running_server(database_url, provider_url, tmp_path / "works", **shared) as works,
            running_server(database_url, provider_url, tmp_path / "talks", embedded_worker=False, **shared) as talks,
        ):
            ada = works.sign_up()
            run_id = ada.start("Draw a house [offline: two] [offline: slow=2]", agent_key="designer")["id"]
            with ada.http.stream("GET", f"/v1/runs/{run_id}/events") as answer:
                next(event for event in events_of(answer) if event["type"] == "attachment.created")
                with ada.at(talks.base_url) as client:
                    began = time.monotonic()
                    assert client.put(f"/v1/runs/{run_id}/cancellation").status_code == 202
                stopped = until(lambda: upstream_status(provider_url, database_url, run_id) == "cancelled", 5)
                took = time.monotonic() - began
            print(f"the provider had stopped {took:.2f} s after the cancellation")
            assert stopped
            assert took <= timeouts.CANCELLED
            if background:
                assert cancel_requests(provider_url, database_url, run_id) == 1
            events = ada.events(run_id)
            assert kinds(events)[-2:] == ["message.completed", "run.cancelled"]
            (kept,) = one(events, "message.completed")["message"]["attachments"]
            assert kept["object_id"] == one(events, "attachment.created")["attachment"]["object_id"]
            assert httpx.get(one(events, "attachment.created")["attachment"]["url"]).status_code == 200
            assert status_of(ada, run_id) == "cancelled"


def upstream_status(provider_url: str, database_url: str, run_id: str) -> str:
    """What the provider says of the run's response."""
    answer = httpx.get(
        f"{provider_url}/responses/{response_of(database_url, run_id)}", headers={"Authorization": "Bearer sk-test"}
    )
    return str(answer.json().get("status"))


def cancel_requests(provider_url: str, database_url: str, run_id: str) -> int:
    requests: list[dict[str, Any]] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    path = f"/v1/responses/{response_of(database_url, run_id)}/cancel"
    return sum((request["method"], request["path"]) == ("POST", path) for request in requests)


def response_of(database_url: str, run_id: str) -> str:
    ((response_id,),) = rows(database_url, "SELECT response_id FROM runs WHERE id = :id", {"id": run_id})
    return str(response_id)
