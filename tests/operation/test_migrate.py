"""Migrations: once, again, four at once, and by an owner who is no superuser."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import ProgrammingError

from app.attachments import models as attachments
from app.conversations.models import Conversation, Message
from app.db import Database, uuid7
from app.identity.models import Membership, Role, Tenant, User
from app.logins import as_login
from app.migrate import migrate
from app.runs import models as runs
from app.schema import SCRIPTS, head_revision, is_current, revisions, schema_state
from app.usage import models as usage
from tests.migrations import ROOT, upgrade
from tests.tables import rows

if TYPE_CHECKING:
    from tests.conftest import Postgres

MODELS = (attachments, runs, usage)


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Database]:
    database = Database(url, pool_size=2)
    try:
        yield database
    finally:
        await database.close()


async def test_migrating_twice_changes_nothing(empty_database_url: str) -> None:
    assert await migrate(empty_database_url) == head_revision()
    assert await migrate(empty_database_url) == head_revision()


@pytest.mark.slow
async def test_four_migrations_at_once_all_succeed(empty_database_url: str) -> None:
    assert await in_processes([empty_database_url] * 4) == [0] * 4


@pytest.mark.prove
async def test_four_databases_of_a_new_server_can_be_migrated_at_once(new_postgres: "Postgres") -> None:
    names = [f"easel_{number}" for number in range(4)]
    await asyncio.to_thread(new_postgres.execute, *(f"CREATE DATABASE {name}" for name in names))
    urls = [new_postgres.url_of(name) for name in names]
    assert await in_processes(urls) == [0] * 4
    for url in urls:
        async with opened(url) as database:
            assert await is_current(database)


async def test_the_migrated_schema_is_what_the_models_say(database_url: str) -> None:
    """Asked in a process that has loaded no more than `./just revision` does."""
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "alembic", "check", cwd=ROOT, env=environment)
    assert await process.wait() == 0


def test_a_migration_is_called_after_its_revision() -> None:
    """By which what serves knows them, without Alembic."""
    by_alembic = [script.revision for script in ScriptDirectory(str(SCRIPTS)).walk_revisions()]
    assert by_alembic[::-1] == list(revisions())


async def test_a_database_is_current_once_it_is_migrated(empty_database_url: str) -> None:
    async with opened(empty_database_url) as database:
        assert await schema_state(database) == (None, head_revision())
        assert not await is_current(database)
        await migrate(empty_database_url)
        assert await schema_state(database) == (head_revision(), head_revision())
        assert await is_current(database)


async def test_a_database_that_a_newer_release_migrated_still_serves_this_one(database_url: str) -> None:
    async with opened(database_url) as database:
        async with database.engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = 'of_tomorrow'"))
        assert await is_current(database)


async def test_an_owner_without_superuser_rights_migrates_and_serves(new_postgres: "Postgres") -> None:
    url = await asyncio.to_thread(make_owner_database, new_postgres)
    assert await migrate(url) == head_revision()
    assert await migrate(url) == head_revision()
    async with opened(url) as database:
        await talk_and_forget(database)
        # FORCE binds the owner too: no policy is theirs, so they see nothing outside the two roles.
        async with database.engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM tenants")) == 0


async def test_a_data_migration_that_row_security_would_blind_fails_loudly(new_postgres: "Postgres") -> None:
    url = await asyncio.to_thread(make_owner_database, new_postgres)
    await migrate(url)
    async with opened(url) as database, database.engine.connect() as connection:
        await connection.execute(text("SET LOCAL row_security = off"))
        with pytest.raises(ProgrammingError, match="row-level security"):
            await connection.execute(text("UPDATE conversations SET title = ''"))


async def test_plans_find_every_tenant_and_what_this_month_has_used(new_postgres: "Postgres") -> None:
    url = await asyncio.to_thread(make_owner_database, new_postgres)
    await upgrade(url, "0006")
    tenant, user = uuid7(), uuid7()
    superuser = new_postgres.url_of("kept")
    made = "INSERT INTO tenants (id, created_at, name, plan) VALUES (:tenant, now(), 'A', 'gold')"
    await asyncio.to_thread(rows, superuser, made, {"tenant": tenant})
    for age, number in (("0 days", 1), ("40 days", 2)):
        given = {"tenant": tenant, "user": user, "age": age, "number": number}
        await asyncio.to_thread(rows, superuser, ENTRY, given)
    assert await migrate(url) == head_revision()
    plans = await asyncio.to_thread(rows, superuser, "SELECT name FROM plans ORDER BY name")
    assert plans == [("gold",), ("trial",), ("unlimited",)]
    counted = await asyncio.to_thread(
        rows, superuser, "SELECT user_id, spent_nano, images FROM usage_counters ORDER BY user_id"
    )
    assert counted == [(UUID(int=0), 7, 1), (user, 7, 1)]


ENTRY = """
INSERT INTO usage_entries (id, created_at, tenant_id, user_id, run_id, call, model, kind, quantity, nano_each,
cost_nano, tool_call_id)
VALUES (gen_random_uuid(), now() - CAST(CAST(:age AS text) AS interval), :tenant, :user, gen_random_uuid(), :number,
'm', 'image_output_tokens', 7, 1, 7, 'ig_1')
"""


async def test_a_login_that_owns_nothing_serves_once_it_may_become_the_two_roles(new_postgres: "Postgres") -> None:
    owner = await asyncio.to_thread(make_owner_database, new_postgres)
    await migrate(owner)
    await asyncio.to_thread(
        new_postgres.execute,
        "CREATE ROLE service LOGIN",
        "GRANT easel_app, easel_identity TO service WITH SET TRUE, INHERIT FALSE",
    )
    async with opened(as_login(owner, "service")) as database:
        assert await is_current(database)
        await talk_and_forget(database)


async def in_processes(urls: list[str]) -> list[int]:
    """The exit codes of one migrating process for each URL, all at once."""
    program = "import asyncio, sys; from app.migrate import migrate; asyncio.run(migrate(sys.argv[1]))"
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", program, url) for url in urls]
    return [await process.wait() for process in processes]


def make_owner_database(postgres: "Postgres") -> str:
    """The URL of a database whose owner, no superuser, is the one who logs in."""
    postgres.execute("CREATE ROLE keeper LOGIN CREATEROLE CREATEDB", "CREATE DATABASE kept OWNER keeper")
    return as_login(postgres.url_of("kept"), "keeper")


async def talk_and_forget(database: Database) -> None:
    """Sign up, talk, delete the conversation: foreign keys are checked, and cascade, under FORCE too."""
    tenant, user = Tenant(id=uuid7(), name="A"), User(id=uuid7(), email=f"{uuid7()}@example.org", password_hash="-")
    async with database.identity() as session:
        session.add_all([tenant, user])
        await session.flush()
        session.add(Membership(tenant_id=tenant.id, user_id=user.id, role=Role.OWNER))
    async with database.tenant(tenant.id) as session:
        conversation = Conversation(tenant_id=tenant.id, user_id=user.id, agent_key="designer", title="A cat")
        session.add(conversation)
        await session.flush()
        session.add(Message(tenant_id=tenant.id, conversation_id=conversation.id, role="user", text="A cat"))
    async with database.tenant(tenant.id) as session:
        assert await session.scalar(select(func.count()).select_from(Message)) == 1
        await session.execute(delete(Conversation))
    async with database.tenant(tenant.id) as session:
        assert await session.scalar(select(func.count()).select_from(Message)) == 0
