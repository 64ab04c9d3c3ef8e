"""Promise 31: a tenant with a long queue keeps nobody else waiting."""

import time
from collections.abc import Generator
from pathlib import Path

import pytest

from tests import timeouts
from tests.app_server import ApiUser, AppServer, events_of, running_server
from tests.results import Results
from tests.servers import redis_server
from tests.tables import rows

WORKER_CONCURRENCY = 4


@pytest.fixture(params=["memory", "redis"])
def small_server(
    request: pytest.FixtureRequest, database_url: str, provider_url: str, tmp_path: Path
) -> Generator[AppServer]:
    """A service with fewer places for runs than one tenant may have."""
    if request.param == "memory":
        with running_server(database_url, provider_url, tmp_path, worker_concurrency=WORKER_CONCURRENCY) as server:
            yield server
        return
    with (
        redis_server(tmp_path / "redis") as redis,
        running_server(
            database_url, provider_url, tmp_path, worker_concurrency=WORKER_CONCURRENCY, redis_url=redis.url
        ) as server,
    ):
        yield server


@pytest.mark.parametrize("queued", [40, pytest.param(200, marks=[pytest.mark.prove, pytest.mark.timeout(300)])])
def test_a_tenant_with_a_long_queue_keeps_nobody_waiting(
    small_server: AppServer, database_url: str, queued: int, results: Results
) -> None:
    many, few = small_server.sign_up("Many"), small_server.sign_up("Few")
    for _ in range(queued):
        many.start("Draw a house [offline: stall]", agent_key="designer")
    took = [seconds_to_start(few) for _ in range(3)]
    ((waiting,),) = rows(database_url, "SELECT count(*) FROM runs WHERE status = 'queued'")
    tried = f"{queued} runs of one tenant, {waiting} of them waiting"
    results(31, "noisy neighbour", tried=tried, kept=f"another's started in {max(took):.2f} s")
    assert waiting > queued / 2
    assert max(took) <= timeouts.FAIR_START


def seconds_to_start(user: ApiUser) -> float:
    began = time.monotonic()
    body = {"input": "Hello"}
    with user.http.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as answer:
        next(event for event in events_of(answer) if event["type"] == "run.started")
        return time.monotonic() - began
