"""Bringing the database's schema to the newest revision."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from app.pool import CONNECT_SECONDS
from app.schema import SCRIPTS, head_revision, require_supported

LOCK_KEY = int.from_bytes(b"easel")
LOCK_POLL_SECONDS = 0.1


async def migrate(url: str) -> str:
    """Bring the database to the newest revision and return its name; concurrent calls wait for each other.

    Alembic keeps one migration per process: two databases at once need two processes.
    """
    async with open_for_migration(url) as connection:
        await connection.run_sync(_upgrade)
    return head_revision()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@asynccontextmanager
async def open_for_migration(url: str) -> AsyncGenerator[AsyncConnection]:
    """A connection as the login role that holds the lock of all migrations until it closes.

    `url` is any libpq form. Rows that row security would hide are an error here instead of absent.
    """
    # asyncpg reads the libpq forms itself. No command timeout: a migration may need any time.
    options = {"dsn": url, "timeout": CONNECT_SECONDS, "server_settings": {"row_security": "off"}}
    engine = create_async_engine("postgresql+asyncpg://", connect_args=options, poolclass=NullPool)
    async with engine.connect() as connection:
        await require_supported(connection)
        # A statement that waits for the lock holds a snapshot, and CREATE INDEX CONCURRENTLY would wait for that one.
        while not await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
            await connection.rollback()
            await asyncio.sleep(LOCK_POLL_SECONDS)
        await connection.commit()
        yield connection
