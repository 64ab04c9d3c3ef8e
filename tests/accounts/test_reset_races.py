"""Password resets of one user at once: the last one made is good, and none fails or waits in a circle."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from sqlalchemy import select, text

from app.db import Database
from app.identity import credentials, mails
from app.identity.models import PasswordReset
from tests import timeouts
from tests.app_server import ApiUser, AppServer

AT_ONCE = 8
WAITING = """SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock'"""


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    database = Database(database_url, pool_size=AT_ONCE)
    yield database
    await database.close()


async def test_of_many_resets_at_once_each_replaces_the_one_before(
    server: AppServer, ada: ApiUser, database: Database
) -> None:
    making = [mails.make_reset(database, server.settings, ada.email) for _ in range(AT_ONCE)]
    made = await asyncio.gather(*making)
    async with database.identity() as session:
        kept = (await session.scalars(select(PasswordReset.secret_hash))).all()
    assert len(kept) == 1
    assert kept[0] in [credentials.fingerprint(reset.token) for reset in made]


async def test_a_reset_that_is_used_and_one_that_is_made_do_not_wait_for_each_other_in_a_circle(
    server: AppServer, ada: ApiUser, database: Database
) -> None:
    """The statements of `make_reset`, with the use of the earlier token between them."""
    reset = await mails.make_reset(database, server.settings, ada.email)
    body = {"token": reset.token, "new_password": "another long password"}
    async with database.engine.begin() as connection:
        await connection.execute(text("SELECT id FROM users FOR NO KEY UPDATE"))
        using = asyncio.create_task(asyncio.to_thread(server.anyone().put, "/v1/password-resets", json=body))
        await until_one_waits(database)
        await connection.execute(text("DELETE FROM password_resets"))
    assert (await using).status_code == 404


async def until_one_waits(database: Database) -> None:
    async with asyncio.timeout(timeouts.PATIENCE), database.engine.connect() as connection:
        while not await connection.scalar(text(WAITING)):
            await asyncio.sleep(0.02)
