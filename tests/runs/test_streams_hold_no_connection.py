"""Open streams cost no database connection: many more of them than the pool has, and everybody else is served."""

import time
from collections.abc import Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import timeouts
from tests.app_server import ApiUser, AppServer, running_server
from tests.tables import rows
from tests.timeouts import wait_until

POOL = 5
STREAMS = 30
IDLE = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
# Until it is stopped.
SLOW = "Draw something slow [offline: stall]"


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    settings: dict[str, Any] = {
        "database_pool_size": POOL,
        "worker_concurrency": STREAMS + 10,
        "tenant_concurrency": STREAMS,
    }
    with running_server(database_url, provider_url, tmp_path, **settings) as server:
        yield server


@pytest.mark.slow
@pytest.mark.anyio
async def test_others_are_answered_while_more_streams_are_open_than_the_pool_has_connections(
    server: AppServer, ada: ApiUser
) -> None:
    runs = [ada.start(SLOW, agent_key="designer")["id"] for _ in range(STREAMS)]
    headers = {"Authorization": ada.http.headers["Authorization"]}
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=server.base_url, headers=headers, timeout=30)
        )
        for run_id in runs:
            answer = await stack.enter_async_context(client.stream("GET", f"/v1/runs/{run_id}/events"))
            await read_until(answer, "event: run.started")
        for path in ("/v1/me", "/v1/conversations", "/v1/attachments", "/v1/agents", "/readyz"):
            began = time.monotonic()
            assert (await client.get(path)).status_code == 200
            assert time.monotonic() - began < timeouts.ALIVE, path
        states = [(await client.get(f"/v1/runs/{run_id}")).json()["status"] for run_id in runs]
        assert states == ["running"] * STREAMS
        for run_id in runs:
            assert (await client.put(f"/v1/runs/{run_id}/cancellation")).status_code == 202


def test_a_stream_leaves_no_transaction_open(server: AppServer, ada: ApiUser, database_url: str) -> None:
    run_id = ada.start("Draw something slow [offline: slow=30]", agent_key="designer")["id"]
    with ada.http.stream("GET", f"/v1/runs/{run_id}/events") as answer:
        next(line for line in answer.iter_lines() if line == "event: tool.started")
        # What was between two statements of a transaction just then is none that a stream holds.
        wait_until(lambda: rows(database_url, IDLE) == [])
    assert ada.http.put(f"/v1/runs/{run_id}/cancellation").status_code == 202


async def read_until(answer: httpx.Response, wanted: str) -> None:
    assert answer.status_code == 200
    # Left open on purpose: the stream's end is not what is looked at.
    async for line in answer.aiter_lines():
        if line == wanted:
            return
    pytest.fail(f"the stream ended without {wanted}")
