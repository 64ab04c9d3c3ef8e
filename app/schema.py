"""Whether the database's schema is that of this release; told without Alembic, which migrating alone needs."""

from functools import cache
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database
from app.settings import SettingsError

SCRIPTS = Path(__file__).resolve().parent.parent / "migrations"

OLDEST_POSTGRES = 16
# Alembic's table has one row, or none once everything is undone.
_CURRENT = text("SELECT version_num FROM alembic_version")
_WAS_MIGRATED = text("SELECT to_regclass('alembic_version') IS NOT NULL")


async def is_current(database: Database) -> bool:
    """Whether the schema serves this release: it has the newest revision, or one of a newer release."""
    current, head = await schema_state(database)
    return current == head or (current is not None and current not in revisions())


async def schema_state(database: Database) -> tuple[str | None, str]:
    """The database's revision (None: never migrated) and the newest one."""
    async with database.probe.connect() as connection:
        current = await connection.scalar(_CURRENT) if await connection.scalar(_WAS_MIGRATED) else None
    return current, head_revision()


def head_revision() -> str:
    return revisions()[-1]


@cache
def revisions() -> tuple[str, ...]:
    """This release's, the oldest first: a file in migrations/versions is called after its revision."""
    return tuple(sorted(path.name.partition("_")[0] for path in (SCRIPTS / "versions").glob("[0-9]*_*.py")))


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
