"""Postgres restarts, or crashes and comes back, under load: what was acknowledged stands, nobody gets a 500."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from app.migrate import migrate
from tests import timeouts
from tests.app_server import ApiUser, AppServer, Event, events_of, running_server
from tests.results import Results
from tests.servers import PostgresServer, postgres_server

WRITERS = 8
TERMINAL = ("run.completed", "run.failed", "run.cancelled")
RESTARTS = [
    pytest.param(1, "immediate"),
    *(pytest.param(10, mode, marks=[pytest.mark.prove, pytest.mark.timeout(300)]) for mode in ("fast", "immediate")),
]


@dataclass
class Answers:
    """What the writers received: runs that were acknowledged, all statuses, moments of success."""

    run_ids: list[str] = field(default_factory=list[str])
    statuses: list[int] = field(default_factory=list[int])
    successes: list[float] = field(default_factory=list[float])
    faults: list[str] = field(default_factory=list[str])


@pytest.fixture(scope="module")
def own_postgres() -> Generator[PostgresServer]:
    with postgres_server() as postgres:
        asyncio.run(migrate(postgres.url))
        yield postgres


@pytest.fixture
def restarting(own_postgres: PostgresServer, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    settings: dict[str, Any] = {"run_lease_seconds": 5, "tenant_concurrency": 50, "worker_concurrency": 50}
    with running_server(own_postgres.url, provider_url, tmp_path, **settings) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "mode"), RESTARTS)
def test_a_restart_loses_nothing_that_was_acknowledged(
    restarting: AppServer,
    own_postgres: PostgresServer,
    rounds: int,
    mode: Literal["fast", "immediate"],
    results: Results,
) -> None:
    seed = random.randrange(2**32)
    pauses = random.Random(seed)
    ada = restarting.sign_up("Ada's")
    drawing = [ada.start("Draw a house [offline: slow=3]", agent_key="designer") for _ in range(4)]
    streams = [Reader(ada, run["id"]) for run in drawing]
    received, stop = Answers(), threading.Event()
    writers = [threading.Thread(target=write, args=(ada, received, stop)) for _ in range(WRITERS)]
    for thread in [*streams, *writers]:
        thread.start()
    recoveries: list[float] = []
    for _ in range(rounds):
        time.sleep(pauses.uniform(0.2, 1))
        own_postgres.restart(mode)
        recoveries.append(seconds_until_well(received))
    stop.set()
    for thread in writers:
        thread.join()
    assert_nothing_but_503(received)
    assert max(recoveries) <= timeouts.RECOVERY
    run_ids = [*received.run_ids, *(run["id"] for run in drawing)]
    ended = wait_until_ended(ada, run_ids)
    for stream in streams:
        stream.join(timeouts.PATIENCE)
        assert [event["type"] for event in stream.events if event["type"] in TERMINAL], "a stream never ended"
    for run_id in run_ids:
        assert len([event for event in ada.events(run_id) if event["type"] in TERMINAL]) == 1
    results(
        17,
        f"Postgres restarts: {mode}",
        tried=f"{rounds} restarts, {len(received.statuses)} writes",
        kept=f"{len(received.run_ids)} acknowledged, 0 lost, {received.statuses.count(503)} x 503, 0 x 500, "
        f"recovery {max(recoveries):.2f} s, ended {dict(ended)}",
        seed=seed,
    )


class Reader(threading.Thread):
    """Follows a run, and comes back where the stream ends before the run does."""

    def __init__(self, ada: ApiUser, run_id: str) -> None:
        super().__init__(daemon=True)
        self.events: list[Event] = []
        self._ada = ada
        self._run_id = run_id

    def run(self) -> None:
        while not self.events or self.events[-1]["type"] not in TERMINAL:
            after = self.events[-1]["seq"] if self.events else 0
            with self._ada.http.stream("GET", f"/v1/runs/{self._run_id}/events", params={"after": after}) as answer:
                if answer.status_code == 200:
                    self.events.extend(events_of(answer))
            time.sleep(0.1)


def write(ada: ApiUser, received: Answers, stop: threading.Event) -> None:
    while not stop.is_set():
        answer = ada.http.post("/v1/runs", json={"input": "Hello [offline: words=5]"})
        received.statuses.append(answer.status_code)
        if answer.status_code == 202:
            received.run_ids.append(answer.json()["id"])
            received.successes.append(time.monotonic())
        elif answer.status_code != 503 or "retry-after" not in answer.headers:
            received.faults.append(answer.text)
        time.sleep(0.05)


def seconds_until_well(received: Answers) -> float:
    """From now to the next write that is acknowledged."""
    now = time.monotonic()
    while not (later := [moment for moment in list(received.successes) if moment > now]):
        assert time.monotonic() < now + timeouts.PATIENCE
        time.sleep(0.01)
    return later[0] - now


def assert_nothing_but_503(received: Answers) -> None:
    assert received.faults == []
    assert set(received.statuses) <= {202, 503}


def wait_until_ended(ada: ApiUser, run_ids: list[str]) -> Counter[str]:
    """How many runs ended in which way, failed ones by their code; every one of them is there."""
    deadline = time.monotonic() + timeouts.PATIENCE
    ended = Counter[str]()
    for run_id in run_ids:
        while True:
            answer = ada.http.get(f"/v1/runs/{run_id}")
            assert answer.status_code == 200, f"an acknowledged run is lost: {answer.text}"
            if f"run.{answer.json()['status']}" in TERMINAL:
                break
            assert time.monotonic() < deadline, answer.json()
            time.sleep(0.1)
        run: dict[str, Any] = answer.json()
        ended[str(run["error"]["code"] if run["error"] else run["status"])] += 1
    return ended
