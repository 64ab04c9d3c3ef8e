"""What a serving process does while nothing happens."""

import time
from collections import defaultdict
from contextlib import AbstractAsyncContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from docket import Docket
from sqlalchemy import event

from app.db import Database
from app.worker.housekeeping import LOOK_EVERY
from tests import timeouts
from tests.app_server import AppServer, one, running_server

LOOKS = 3


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


@pytest.mark.slow
def test_it_looks_for_work_with_one_statement(server: AppServer) -> None:
    database: Database = server.uvicorn.app.state.database
    began: list[object] = []

    def begin(connection: object) -> None:
        began.append(connection)

    # After its start each job waits for what it has to do.
    time.sleep(1.5 * LOOK_EVERY.total_seconds())
    event.listen(database.engine.sync_engine, "begin", begin)
    time.sleep(LOOKS * LOOK_EVERY.total_seconds())
    event.remove(database.engine.sync_engine, "begin", begin)
    # Another look may begin at the edge.
    assert 1 <= len(began) <= LOOKS + 1


def test_it_does_not_ask_whether_a_task_is_cancelled(
    database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def listen(docket: Docket) -> AbstractAsyncContextManager[None]:
        asked.append(docket)
        return nullcontext()

    monkeypatch.setattr(Docket, "_pubsub", listen)
    with running_server(database_url, provider_url, tmp_path) as server:
        ada = server.sign_up()
        image = one(ada.draw(), "attachment.created")["attachment"]["object_id"]
        # docket's tasks are executed all the same.
        timeouts.wait_until(lambda: ada.http.get(f"/v1/attachments/{image}").json()["variants"])
    assert asked == []


@pytest.mark.slow
def test_docket_asks_its_broker_three_times_a_second(server: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    broker: Any = import_module("burner_redis").BurnerRedis  # which has no types
    # By broker, as another service may run in this process.
    asked = defaultdict[int, list[str]](list)

    def counting(name: str) -> Any:
        ask = getattr(broker, name)

        def call(self: object, *args: object, **options: object) -> object:
            asked[id(self)].append(name)
            return ask(self, *args, **options)

        return call

    time.sleep(2)
    for name in ("xreadgroup", "evalsha", "eval", "execute_pipeline"):
        monkeypatch.setattr(broker, name, counting(name))
    time.sleep(6)
    # For new tasks twice a second; for those that are due every two seconds.
    assert asked
    for calls in asked.values():
        assert "xreadgroup" in calls
        assert len(calls) <= 19


@pytest.mark.slow
def test_the_server_looks_at_itself_once_a_second(server: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: list[int] = []
    on_tick = server.uvicorn.on_tick

    async def count(counter: int) -> bool:
        ticks.append(counter)
        return await on_tick(counter)

    monkeypatch.setattr(server.uvicorn, "on_tick", count)
    time.sleep(2.5)
    assert 1 <= len(ticks) <= 3


def test_it_ends_at_once_all_the_same(
    database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.server.TICK_SECONDS", 60.0)
    with running_server(database_url, provider_url, tmp_path) as server:
        assert server.uvicorn.started
        began = time.monotonic()
    assert time.monotonic() - began < timeouts.DRAINED
