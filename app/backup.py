"""The rows of a whole database as one file of pg_dump, and back into an empty database.

A file gets its name once it is known to hold every row; what is restored is counted again.
"""

import asyncio
import os
import tempfile
from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from app import EaselError
from app.database_faults import reason_of
from app.db import BACKUP_ROLE
from app.errors import CONNECTION_FAULTS
from app.logins import POOLED, make_roles
from app.pg_tools import ToolError, contents, count_rows, find_tool, run_tool
from app.pool import connected, is_pooled

SCHEMAS = ("public", "app")
REVISIONS = "public.alembic_version"
# The empty database has it already.
PUBLIC_SCHEMA = (" SCHEMA - public ", " COMMENT - SCHEMA public ")

# Without what belongs to an extension, as some hosts put into each database.
_OURS = """
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname IN ('public', 'app') AND NOT EXISTS (
  SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
"""
_TABLES = f"SELECT format('%I.%I', n.nspname, c.relname) {_OURS} AND c.relkind = 'r' ORDER BY 1"
_FIRST_OBJECT = f"SELECT format('%I.%I', n.nspname, c.relname) {_OURS} ORDER BY 1 LIMIT 1"
# A policy that shows fewer rows makes no error: pg_dump would leave the others out.
_NOT_WHOLLY_READABLE = f"""
SELECT format('%I.%I', n.nspname, c.relname) {_OURS} AND c.relkind IN ('r', 'p', 'm', 'S') AND NOT (
  CASE c.relkind WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') ELSE has_table_privilege(c.oid, 'SELECT') END
  AND (NOT c.relrowsecurity OR (
    EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid AND polpermissive AND polcmd IN ('r', '*')
      AND '{BACKUP_ROLE}'::regrole::oid = ANY (polroles) AND pg_get_expr(polqual, polrelid) = 'true')
    AND NOT EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid AND NOT polpermissive AND polcmd IN ('r', '*')
      AND ARRAY[0, '{BACKUP_ROLE}'::regrole::oid]::oid[] && polroles))))
ORDER BY 1
"""  # noqa: S608 - our own names

_FAULTS = (ToolError, *CONNECTION_FAULTS, asyncpg.PostgresError, asyncpg.InterfaceError)


class BackupError(EaselError):
    pass


@dataclass(frozen=True)
class Contents:
    """What a backup holds: the rows of each table."""

    rows: dict[str, int]

    def __str__(self) -> str:
        return f"{sum(self.rows.values())} rows in {len(self.rows)} tables"


def back_up(url: str, setting: str, file: Path) -> Contents:
    """Write the database of `url`, which `setting` names, to `file`, which must not be there."""
    with _partial(file) as partial, asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            connection = runner.run(stack.enter_async_context(connected(url, setting)))
            snapshot = runner.run(_begin(connection, setting))
            server = connection.get_server_version().major
            options = [f"--snapshot={snapshot}", f"--role={BACKUP_ROLE}", "--enable-row-security"]
            options += [*(f"--schema={name}" for name in SCHEMAS), "--format=custom", f"--file={partial}"]
            run_tool(find_tool("pg_dump", server), url, *options)
            expected = runner.run(_count(connection))
            held = count_rows(find_tool("pg_restore", server), partial)
        except _FAULTS as error:
            raise BackupError(f"No backup was written: {reason_of(error)}.") from None
        finally:
            runner.run(stack.aclose())
        if held != expected:
            raise BackupError(f"No backup was written: it would lack rows ({_difference(expected, held)}).")
        partial.rename(file)
    return Contents(held)


def restore(url: str, serving_url: str, setting: str, file: Path) -> Contents:
    """Fill the empty database of `url` from `file`; all of it, or nothing."""
    server = asyncio.run(_look_at_target(url, setting))
    try:
        pg_restore = find_tool("pg_restore", server)
        # Before anything is made: a file that was cut off is refused here.
        held = count_rows(pg_restore, file)
        if REVISIONS not in held:
            raise ToolError("it holds no database of Easel")
        asyncio.run(make_roles(url, serving_url))
        with tempfile.NamedTemporaryFile("w", prefix="easel-restore-") as chosen:
            chosen.writelines(f"{line}\n" for line in contents(pg_restore, file) if not _names_public_schema(line))
            chosen.flush()
            options = ("--no-owner", "--exit-on-error", "--single-transaction", f"--use-list={chosen.name}")
            run_tool(pg_restore, url, *options, str(file))
    except _FAULTS as error:
        raise BackupError(f"Nothing was restored from {file}: {reason_of(error)}.") from None
    restored = asyncio.run(_finish(url, setting))
    if restored != held:
        raise BackupError(f"The database lacks rows of {file} ({_difference(held, restored)}): drop it.")
    return Contents(held)


@contextmanager
def _partial(file: Path) -> Generator[Path]:
    """A file beside it, of this user alone, which is gone at the end unless it was renamed."""
    if file.exists():
        raise BackupError(f"{file} is there already, and no backup is overwritten: give another name.")
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise BackupError(f"{file} cannot be written: {error.strerror}.") from None
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


async def _begin(connection: Any, setting: str) -> str:
    """Open the transaction whose snapshot pg_dump is to read, as the role that reads all rows; the snapshot's name."""
    await _refuse_pooler(connection, setting)
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    # It waits for pg_dump, and some hosts end a transaction that does nothing.
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    await _become_reader(connection, setting)
    unreadable = [name for (name,) in await connection.fetch(_NOT_WHOLLY_READABLE)]
    if unreadable:
        raise BackupError(
            f"No backup was written: {BACKUP_ROLE} may not read all of {', '.join(unreadable)}. Each table needs GRANT"
            f" SELECT TO {BACKUP_ROLE} and CREATE POLICY backup FOR SELECT TO {BACKUP_ROLE} USING (true)."
        )
    return await connection.fetchval("SELECT pg_export_snapshot()")


async def _become_reader(connection: Any, setting: str) -> None:
    try:
        await connection.execute(f"SET LOCAL ROLE {BACKUP_ROLE}")
    except (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError) as error:
        raise BackupError(
            f"The user of {setting} may not become {BACKUP_ROLE} ({reason_of(error)}): give the user that owns the"
            " tables by MIGRATION_DATABASE_URL, and run `easel migrate`."
        ) from None


async def _count(connection: Any) -> dict[str, int]:
    names = [name for (name,) in await connection.fetch(_TABLES)]
    return {name: await connection.fetchval(f"SELECT count(*) FROM {name}") for name in names}  # noqa: S608 - quoted


async def _look_at_target(url: str, setting: str) -> int:
    """The server's major version; raises BackupError unless the database is empty."""
    async with connected(url, setting) as connection:
        await _refuse_pooler(connection, setting)
        found = await connection.fetchval(_FIRST_OBJECT)
        if found is not None:
            raise BackupError(f"The database of {setting} is not empty (it has {found}): give a new, empty one.")
        return connection.get_server_version().major


async def _finish(url: str, setting: str) -> dict[str, int]:
    """Count what was restored, and have the planner know it before the first request."""
    async with connected(url, setting) as connection:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {BACKUP_ROLE}")
            counts = await _count(connection)
        for name in counts:
            await connection.execute(f"ANALYZE {name}")
        return counts


async def _refuse_pooler(connection: Any, setting: str) -> None:
    if await is_pooled(connection):
        raise BackupError(POOLED.format(setting=setting))


def _names_public_schema(line: str) -> bool:
    return any(entry in line for entry in PUBLIC_SCHEMA)


def _difference(expected: dict[str, int], found: dict[str, int]) -> str:
    names = sorted({*expected, *found})
    differing = [name for name in names if expected.get(name) != found.get(name)]
    return ", ".join(f"{name}: {found.get(name, 0)} of {expected.get(name, 0)}" for name in differing)
