"""Redis dies and comes back, with or without what it knew: no accepted run is lost, none is paid for twice."""

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import timeouts
from tests.app_server import ApiUser, running_server
from tests.results import Results
from tests.servers import REDIS_SERVERS, free_port, redis_server

TERMINAL = ("run.completed", "run.failed", "run.cancelled")
FULL = [pytest.mark.prove, pytest.mark.timeout(300)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "away_seconds", "persistent"),
    [
        pytest.param("valkey", 3, 1.0, False, id="data lost"),
        *(pytest.param(kind, 15, 10.0, False, id=f"data lost, {kind}", marks=FULL) for kind in REDIS_SERVERS),
        *(pytest.param(kind, 15, 10.0, True, id=f"data kept, {kind}", marks=FULL) for kind in REDIS_SERVERS),
    ],
)
def test_redis_dies_and_comes_back(
    database_url: str,
    provider_url: str,
    tmp_path: Path,
    kind: str,
    count: int,
    away_seconds: float,
    results: Results,
    *,
    persistent: bool,
) -> None:
    redis_port = free_port()
    word = f"w{uuid.uuid4().hex}"
    settings: dict[str, Any] = {"run_lease_seconds": 5, "tenant_concurrency": count}
    with ExitStack() as stack, ThreadPoolExecutor(count) as threads:

        def start_redis() -> ExitStack:
            server = ExitStack()
            redis = server.enter_context(
                redis_server(tmp_path / "redis", kind=kind, port=redis_port, persistent=persistent)
            )
            settings["redis_url"] = redis.url
            server.callback(redis.process.kill)
            return server

        first = stack.enter_context(start_redis())
        server = stack.enter_context(running_server(database_url, provider_url, tmp_path / "server", **settings))
        ada = server.sign_up("Ada's")
        # Some run when Redis dies, the rest wait for a place.
        runs = [start(ada, f"Draw a house, {word}n{n}n [offline: slow=1]") for n in range(2 * count)]
        readers = [threads.submit(last_event, ada, run_id) for run_id, _ in runs[:count] if run_id]
        time.sleep(0.5)
        first.close()
        began = time.monotonic()
        runs += [start(ada, f"Draw a house, {word}n{n}n") for n in range(2 * count, 3 * count)]
        time.sleep(away_seconds)
        stack.enter_context(start_redis())
        back = time.monotonic()
        runs += [start(ada, f"Draw a house, {word}n{3 * count}n")]
        accepted = [run_id for run_id, status in runs if status == 202]
        assert {status for _, status in runs} <= {202, 503}
        ended = {run_id: wait_until_ended(ada, run_id, back) for run_id in accepted}
        seconds = time.monotonic() - back
        assert all(reader.result() in TERMINAL for reader in readers)
        posts = [posts_with(provider_url, f"{word}n{n}n") for n in range(len(runs))]
    assert max(posts) <= 1
    for (run_id, _), paid in zip(runs, posts, strict=True):
        assert ended.get(run_id) != "completed" or paid == 1
    assert set(ended.values()) == {"completed"}
    results(
        19,
        f"{kind} dies, {'data kept' if persistent else 'data lost'}",
        tried=f"{len(runs)} runs, {back - began:.1f} s away",
        kept=f"{len(accepted)} accepted, {len(ended)} ended, {max(posts)} POST each, all within {seconds:.1f} s",
    )


def start(ada: ApiUser, asked: str) -> tuple[str, int]:
    answer = ada.http.post("/v1/runs", json={"input": asked, "agent_key": "designer"})
    return answer.json().get("id", ""), answer.status_code


def last_event(ada: ApiUser, run_id: str) -> str:
    """By streams that are opened again where they end early."""
    while True:
        events = ada.events(run_id)
        if events and events[-1]["type"] in TERMINAL:
            return str(events[-1]["type"])


def wait_until_ended(ada: ApiUser, run_id: str, since: float) -> str:
    while True:
        answer = ada.http.get(f"/v1/runs/{run_id}")
        assert answer.status_code == 200, "an accepted run is lost"
        if f"run.{answer.json()['status']}" in TERMINAL:
            return str(answer.json()["status"])
        assert time.monotonic() - since < timeouts.DELIVERED_AFTER_OUTAGE, answer.json()
        time.sleep(0.1)


def posts_with(provider_url: str, word: str) -> int:
    """How many responses were asked for with that word in their input."""
    requests: list[dict[str, Any]] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    return sum(request["method"] == "POST" and word in json.dumps(request["body"]) for request in requests)
