"""Migrations that are interrupted, and what they make of the rows that they find."""

import asyncio
import random
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from app import schema_steps
from app.db import uuid7
from app.logins import as_login
from app.migrate import migrate, open_for_migration
from app.schema import head_revision
from tests import migrations
from tests.tables import rows
from tests.timeouts import wait_until
from tests.volume import Volume

if TYPE_CHECKING:
    from tests.conftest import Postgres

SEED = 5
VOLUME = Volume(messages=400, users=5)
LEDGER = """
SELECT kind, sum(quantity), count(DISTINCT agent_key), min(agent_key), count(*) FROM usage_entries GROUP BY kind
ORDER BY kind
"""
FOUND = {
    "ledger": LEDGER,
    "runs": "SELECT booked_basis, count(*) FROM runs GROUP BY 1 ORDER BY 1",
    "counters": "SELECT user_id, spent_nano, images FROM usage_counters ORDER BY user_id",
    "open calls": "SELECT run_id, number, model, agent_key FROM provider_calls ORDER BY run_id",
    "stored bytes": "SELECT stored_bytes, count(*) FROM attachments GROUP BY 1 ORDER BY 1",
    "sign-ins": "SELECT count(*), count(ended_at) FROM sign_ins",
    "tokens": "SELECT count(*), count(DISTINCT sign_in_id) FROM tokens",
    "plans": "SELECT name FROM plans ORDER BY name",
}


class KilledError(Exception):
    """In place of a signal."""


@pytest.fixture(scope="module")
def filled(postgres: "Postgres") -> Generator[str]:
    """The name of a database with rows, at the first revision."""
    with postgres.database() as url:
        asyncio.run(migrations.upgrade(url, "0001"))
        migrations.fill(url, VOLUME)
        rows(url, "UPDATE runs SET status = 'running' WHERE id IN (SELECT id FROM runs ORDER BY id LIMIT 3)")
        yield urlsplit(url).path.lstrip("/")


@pytest.fixture(scope="module")
def straight(postgres: "Postgres", filled: str) -> tuple[list[str], dict[str, Any]]:
    """The schema and what the rows have become where nothing interrupts the migrations."""
    with postgres.database(filled) as url:
        asyncio.run(migrate(url))
        return migrations.schema_of(url), found(url)


def found(url: str) -> dict[str, Any]:
    return {name: rows(url, query) for name, query in FOUND.items()}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["after a step is recorded", "before it is recorded"])
def test_a_killed_migration_goes_on_where_it_was(
    postgres: "Postgres",
    filled: str,
    straight: tuple[list[str], dict[str, Any]],
    when: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill_at_random(monkeypatch, "run_step" if when.startswith("after") else "record_step")
    with postgres.database(filled) as url:
        kills = 0
        while kills < 200:
            try:
                asyncio.run(migrate(url))
                break
            except KilledError:
                kills += 1
        assert kills >= 10
        assert (migrations.schema_of(url), found(url)) == straight


def kill_at_random(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """About every fifth step: once `run_step` has done it, or where `record_step` would take it down."""
    dice = random.Random(SEED)
    original = cast(Callable[..., None], getattr(schema_steps, name))

    def run(connection: Connection, step: schema_steps.Step) -> None:
        dies = dice.random() < 0.2
        if dies and name == "record_step":
            raise KilledError
        original(connection, step)
        if dies:
            raise KilledError

    monkeypatch.setattr(schema_steps, name, run)


async def test_an_index_that_was_left_half_built_is_built_anew(empty_database_url: str) -> None:
    url = empty_database_url
    await migrations.upgrade(url, "0007")
    reader = await cast(Any, asyncpg).connect(url)
    async with reader.transaction(isolation="repeatable_read"):
        await reader.fetch("SELECT FROM runs")  # CREATE INDEX CONCURRENTLY waits for this snapshot
        migrating = asyncio.create_task(asyncio.to_thread(asyncio.run, migrate(url)))
        await asyncio.to_thread(wait_until, lambda: rows(url, HALF_BUILT) != [])
        await asyncio.to_thread(rows, url, END_BUILDER)
        with pytest.raises(schema_steps.MigrationError, match="run `easel migrate` again"):
            await migrating
    await reader.close()
    assert await asyncio.to_thread(rows, url, HALF_BUILT) == [("ix_conversations_owner_new",)]
    assert await migrate(url) == head_revision()
    assert await asyncio.to_thread(rows, url, HALF_BUILT) == []


HALF_BUILT = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
END_BUILDER = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'CREATE INDEX CONCURRENTLY%'
"""


async def test_usage_is_counted_once_though_its_step_is_killed(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, tenant, user = empty_database_url, uuid7(), uuid7()
    await migrations.upgrade(url, "0006")
    await asyncio.to_thread(rows, url, TENANT, {"tenant": tenant})
    await asyncio.to_thread(rows, url, ENTRY, {"tenant": tenant, "user": user, "image": "ig_1", "cost": 7})
    with monkeypatch.context() as patch:
        patch.setattr(schema_steps, "record_step", killed_at("count older usage", schema_steps.record_step))
        with pytest.raises(KilledError):
            await migrate(url)
    # By the release before, which knows nothing of the counters.
    await asyncio.to_thread(rows, url, ENTRY, {"tenant": tenant, "user": user, "image": "ig_2", "cost": 5})
    await migrate(url)
    counted = await asyncio.to_thread(rows, url, FOUND["counters"])
    assert counted == [(UUID(int=0), 12, 2), (user, 12, 2)]


TENANT = "INSERT INTO tenants (id, created_at, name) VALUES (:tenant, now(), 'A')"
ENTRY = """
INSERT INTO usage_entries (id, created_at, tenant_id, user_id, run_id, call, model, kind, quantity, nano_each,
cost_nano, tool_call_id) VALUES (gen_random_uuid(), now(), :tenant, :user, gen_random_uuid(), 1,
'm', 'image_output_tokens', 7, 1, :cost, :image)
"""


def killed_at(name: str, record: Callable[..., None]) -> Callable[..., None]:
    def run(connection: Connection, step: schema_steps.Step) -> None:
        if step.name == name:
            raise KilledError
        record(connection, step)

    return run


def test_an_owner_whom_row_security_binds_migrates_every_row(
    new_postgres: "Postgres", straight: tuple[list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_steps, "BATCH_ROWS", 30)
    new_postgres.execute("CREATE ROLE keeper LOGIN CREATEROLE CREATEDB", "CREATE DATABASE kept OWNER keeper")
    superuser = new_postgres.url_of("kept")
    url = as_login(superuser, "keeper")
    asyncio.run(migrations.upgrade(url, "0001"))
    migrations.fill(superuser, VOLUME)
    rows(superuser, "UPDATE runs SET status = 'running' WHERE id IN (SELECT id FROM runs ORDER BY id LIMIT 3)")
    asyncio.run(migrate(url))
    after = found(superuser)
    # Their ids hold the tenant's, which is another one here.
    for name in ("open calls", "counters"):
        assert len(after.pop(name)) == len(straight[1][name]) > 0
    assert after == {name: straight[1][name] for name in after}
    assert after["ledger"][1] == ("input_tokens", 200 * 70, 1, "designer", 200)
    assert rows(superuser, UNFORCED) == rows(superuser, UNVALIDATED) == []
    assert rows(superuser, "SELECT has_column_privilege('easel_app', 'usage_entries', 'quantity', 'UPDATE')") == [
        (False,)
    ]
    # The same owner is told of a row that breaks the constraint, where Postgres would see none.
    rows(superuser, "ALTER TABLE tenants DROP CONSTRAINT fk_tenants_plan")
    rows(superuser, "UPDATE tenants SET plan = 'unknown' WHERE id = (SELECT id FROM tenants ORDER BY id LIMIT 1)")
    add = "ALTER TABLE tenants ADD CONSTRAINT fk_tenants_plan FOREIGN KEY (plan) REFERENCES plans NOT VALID"
    orphan = "SELECT 1 FROM tenants WHERE NOT EXISTS (SELECT FROM plans WHERE plans.name = tenants.plan)"
    step = schema_steps.validate_foreign_key("tenants", "fk_tenants_plan", orphan)
    with pytest.raises(schema_steps.MigrationError, match="Rows of tenants break fk_tenants_plan"):
        asyncio.run(run_as(url, schema_steps.sql("add", add), step))
    assert rows(superuser, UNVALIDATED) == [("fk_tenants_plan",)]


UNFORCED = """
SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
AND relname <> 'alembic_version' AND NOT (relrowsecurity AND relforcerowsecurity)
"""
UNVALIDATED = "SELECT conname FROM pg_constraint WHERE NOT convalidated"


async def run_as(url: str, *steps: schema_steps.Step) -> None:
    """Steps without a migration around them."""

    def run(connection: Connection) -> None:
        with Operations.context(MigrationContext.configure(connection)):
            schema_steps.run_steps(*steps)

    async with open_for_migration(url) as connection:
        await connection.run_sync(run)


@pytest.mark.slow
async def test_a_generated_column_becomes_one_that_a_trigger_sets(
    empty_database_url: str, straight: tuple[list[str], dict[str, Any]]
) -> None:
    url = empty_database_url
    await migrations.upgrade(url, "0001")
    await asyncio.to_thread(migrations.fill, url, VOLUME)
    await migrations.upgrade(url, "0008")
    for statement in AS_IT_WAS:
        await asyncio.to_thread(rows, url, statement)
    assert await migrate(url) == head_revision()
    assert await asyncio.to_thread(migrations.schema_of, url) == straight[0]
    bytes_of = FOUND["stored bytes"]
    assert await asyncio.to_thread(rows, url, bytes_of) == straight[1]["stored bytes"]
    await asyncio.to_thread(rows, url, "UPDATE attachments SET stored_bytes = 1, variants = '[{\"size_bytes\": 5}]'")
    await asyncio.to_thread(rows, url, UPLOAD)
    assert await asyncio.to_thread(rows, url, bytes_of) == [(1000, 1), (1_000_005, VOLUME.attachments)]


UPLOAD = """
INSERT INTO attachments (id, created_at, tenant_id, user_id, kind, status, filename, mime_type, size_bytes, storage_key,
options) SELECT gen_random_uuid(), now(), tenant_id, user_id, 'upload', 'stored', 'a.png', 'image/png', 1000, 'k', '{}'
FROM attachments LIMIT 1
"""
AS_IT_WAS = (
    "DROP TRIGGER set_stored_bytes ON attachments",
    "DROP FUNCTION app.set_stored_bytes()",
    "ALTER TABLE attachments DROP COLUMN stored_bytes",
    "ALTER TABLE attachments ADD COLUMN stored_bytes bigint"
    " GENERATED ALWAYS AS (app.stored_bytes(status, size_bytes, variants)) STORED",
    "CREATE INDEX ix_attachments_stored_bytes ON attachments (tenant_id) INCLUDE (stored_bytes)",
)
