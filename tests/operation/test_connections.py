"""A pooled connection is trusted while it was used lately; a lost one is replaced before a request meets it."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app import pool
from app.db import Database, uuid7
from app.migrate import migrate
from tests import timeouts
from tests.app_server import running_server
from tests.round_trips import counting
from tests.servers import postgres_server, stopped

TENANT = uuid7()
END_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()"""


@pytest.fixture(scope="module")
def own_url() -> Generator[str]:
    """Of a server whose processes a test may stop."""
    with postgres_server() as postgres:
        asyncio.run(migrate(postgres.url))
        yield postgres.url


@pytest.fixture
async def database(own_url: str) -> AsyncGenerator[Database]:
    database = Database(own_url, pool_size=2)
    yield database
    await database.close()


async def test_a_connection_used_lately_is_not_pinged(database: Database) -> None:
    await backend_of(database)
    with counting(database.engine) as trips:
        for _ in range(2):
            await backend_of(database)
    assert [sql.split(" ")[0] for sql in trips.sent] == ["BEGIN;", "SELECT", "SELECT", "COMMIT;"] * 2


async def test_connections_that_the_server_closed_are_replaced_without_an_error(
    own_url: str, database: Database
) -> None:
    before = await asyncio.gather(backend_of(database, seconds=0.1), backend_of(database, seconds=0.1))
    other = Database(own_url, pool_size=1)
    async with other.engine.connect() as connection:
        await connection.execute(text(END_OTHERS))
    await other.close()
    await asyncio.sleep(0.1)
    after = await asyncio.gather(backend_of(database, seconds=0.1), backend_of(database, seconds=0.1))
    assert not set(before) & set(after)


@pytest.mark.slow
async def test_a_connection_that_was_idle_for_long_and_does_not_answer_is_replaced(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await backend_of(database)
    monkeypatch.setattr(pool, "PING_AFTER_IDLE_SECONDS", 0)
    assert await backend_of(database) == before
    with stopped(before):
        assert await backend_of(database) != before


async def backend_of(database: Database, *, seconds: float = 0) -> int:
    """The id of the server's process behind a transaction that lasts so long."""
    async with database.tenant(TENANT) as session:
        return await session.scalar(text("SELECT pg_backend_pid() FROM pg_sleep(:seconds)"), {"seconds": seconds}) or 0


@pytest.mark.slow
def test_no_request_needs_two_connections(
    database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or as many requests as the pool has connections would each wait for one that another holds."""
    # Housekeeping and thumbnails use the same connection, and a request may wait for them; reconcile needs two.
    monkeypatch.setattr("app.pool.POOL_WAIT_SECONDS", timeouts.PATIENCE)
    monkeypatch.setattr("app.worker.housekeeping.FIRST_AFTER", timedelta(hours=1))
    settings: dict[str, Any] = {"database_pool_size": 1}
    with running_server(database_url, provider_url, tmp_path, **settings) as server:
        ada = server.sign_up("Ada's")
        ada.draw("Draw a house")
        image = ada.http.get("/v1/attachments").json()["data"][0]
        run, talk = f"/v1/runs/{image['run_id']}", f"/v1/conversations/{image['conversation_id']}"
        photo = {"file": ("a.png", httpx.get(image["url"]).content, "image/png")}
        answers = [
            *(ada.http.get(path) for path in ("/v1/me", "/v1/api-keys", "/v1/agents", "/v1/conversations")),
            *(ada.http.get(path) for path in (run, f"{run}/events", talk, f"{talk}/messages")),
            ada.http.get("/v1/attachments", params={"q": "house"}),
            ada.http.get(f"/v1/attachments/{image['object_id']}/content"),
            ada.http.post("/v1/attachments", files=photo),
            ada.http.post("/v1/api-keys", json={"name": "A key"}),
            ada.http.put(f"{run}/cancellation"),
            ada.http.patch(talk, json={"title": "A house"}),
            ada.http.delete(f"/v1/attachments/{image['object_id']}"),
            ada.http.delete(talk),
            ada.http.delete("/v1/tokens/current"),
        ]
        assert [answer.text for answer in answers if not answer.is_success] == []
