"""Migrations one by one, in this process or, as `python -m tests.migrations URL REVISION...`, in one of their own."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from app.db import uuid7
from app.migrate import open_for_migration
from app.schema import SCRIPTS
from tests.servers import postgres_program
from tests.volume import Volume, insert_volume

PASS_TRIGGERS = "options=-csession_replication_role%3Dreplica"
"""For a superuser's URL: triggers and foreign keys cost most of the time that many rows take."""

_LEDGER = """
INSERT INTO usage_entries (id, created_at, tenant_id, user_id, run_id, model, kind, quantity)
SELECT gen_random_uuid(), now(), tenant_id, user_id, id, 'm', kind, quantity FROM runs,
(VALUES ('input_tokens', 100), ('cached_input_tokens', 30), ('output_tokens', 20)) k (kind, quantity)
"""
_TOKENS = """
INSERT INTO tokens (id, created_at, user_id, family_id, kind, secret_hash, expires_at)
SELECT gen_random_uuid(), now(), (SELECT min(user_id::text)::uuid FROM memberships), md5((n / 2)::text)::uuid, 'access',
int4send(n), now() + interval '1 day' FROM generate_series(1, $1::int) n
"""


def revisions() -> list[str]:
    """All of them, from the first to the newest."""
    scripts = ScriptDirectory(str(SCRIPTS))
    return [script.revision for script in scripts.walk_revisions()][::-1]


def upgrade_to(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def upgrade(url: str, revision: str, prepare: Callable[[Connection], None] = lambda _: None) -> None:
    """`prepare` gets the connection beforehand."""

    def run(connection: Connection) -> None:
        prepare(connection)
        upgrade_to(connection, revision)

    async with open_for_migration(url) as connection:
        await connection.run_sync(run)


def fill(superuser_url: str, volume: Volume) -> UUID:
    """Rows as the first revision knows them, in one tenant; its id. It has twenty neighbours without rows."""
    tenant = uuid7()
    url = f"{superuser_url}{'&' if '?' in superuser_url else '?'}{PASS_TRIGGERS}"
    names = "INSERT INTO tenants (id, name, created_at) VALUES ($1, 'T', now())"

    async def work(*statements: tuple[Any, ...]) -> None:
        connection = await cast(Any, asyncpg).connect(url)
        for statement in statements:
            await connection.execute(*statement)
        await connection.close()

    asyncio.run(work(*((names, id_) for id_ in [tenant, *(uuid7() for _ in range(20))])))
    insert_volume(url, tenant, volume)
    asyncio.run(work((_LEDGER,), (_TOKENS, volume.messages // 10), ("VACUUM ANALYZE",)))
    return tenant


def schema_of(url: str) -> list[str]:
    """What pg_dump says of a database, sorted: in which order columns and rights were added does not count."""
    command = [postgres_program("pg_dump"), "--schema-only", url]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = "\n".join(line for line in dump.splitlines() if not line.startswith(("--", "\\")))
    found: list[str] = []
    for statement in filter(None, (part.strip() for part in re.split(r"\n{2,}", text))):
        first, *others = statement.splitlines()
        if first.startswith("CREATE TABLE"):
            found.append("\n".join([first, *sorted(line.rstrip(",") for line in others)]))
        elif first.startswith(("GRANT", "REVOKE")):
            found += [first, *others]
        else:
            found.append(statement)
    return sorted(found)


def program(url: str, *revisions_: str) -> list[str]:
    """The command that prints the name of each revision when it is there."""
    return [sys.executable, "-m", "tests.migrations", url, *revisions_]


ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    for name in sys.argv[2:]:
        asyncio.run(upgrade(sys.argv[1], name))
        print(name, flush=True)  # noqa: T201 - for who started it
