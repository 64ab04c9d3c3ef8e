"""The database's schema: bringing it to the newest revision, and telling whether it is there."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from app.db import Database
from app.pool import CONNECT_SECONDS
from app.settings import SettingsError

SCRIPTS = Path(__file__).resolve().parent.parent / "migrations"

OLDEST_POSTGRES = 16
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
    config = _config()
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


async def require_supported(connection: AsyncConnection) -> str:
    """The server's version; SettingsError where it is too old for the roles, whose grants say who may become them."""
    return require_version(str(await connection.scalar(text("SHOW server_version"))))


def require_version(server_version: str) -> str:
    version = server_version.partition(" ")[0]
    if int(version.partition(".")[0]) < OLDEST_POSTGRES:
        raise SettingsError(
            f"PostgreSQL {version} is too old: Easel needs {OLDEST_POSTGRES} or newer; upgrade it, or name another"
            " server in DATABASE_URL and MIGRATION_DATABASE_URL."
        )
    return version


async def is_current(database: Database) -> bool:
    """Whether the schema serves this release: it has the newest revision, or one of a newer release."""
    current, head = await schema_state(database)
    return current == head or (current is not None and not _is_known(current))


async def schema_state(database: Database) -> tuple[str | None, str]:
    """The database's revision (None: never migrated) and the newest one."""
    async with database.probe.connect() as connection:
        current = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    return current, head_revision()


def head_revision() -> str:
    head = _scripts().get_current_head()
    if head is None:
        raise RuntimeError(f"There are no migrations in {SCRIPTS}.")
    return head


def _is_known(revision: str) -> bool:
    try:
        _scripts().get_revision(revision)
    except CommandError:
        return False
    return True


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return config
