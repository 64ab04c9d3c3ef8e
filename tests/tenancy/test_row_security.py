"""Promise 1: whatever the SQL, nobody sees or changes another tenant's rows.

Every tenant table x {select, update, delete, insert, upsert} x {another tenant, no tenant}, as `easel_app` on a real
Postgres. A cell counts the foreign rows that were seen or changed; each verb is also tried as superuser, where it must
succeed, and mutants of the policies must make cells fail.
"""

# ruff: noqa: S608 - tables and columns are named by the catalogue

import itertools
import json
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, cast
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.attachments.models import Attachment, AttachmentKind, OrphanCandidate
from app.conversations.models import Conversation, Message
from app.db import APP_ROLE, IDENTITY_ROLE, Base, Database, uuid7
from app.erasure.models import Erasure, ErasureKind, ObjectRemoval
from app.exports.models import Export, ExportScope
from app.identity.audit import Action, ActorType, AuditEntry, TargetType
from app.identity.models import (
    ApiKey,
    AttemptCount,
    Invitation,
    Membership,
    PasswordReset,
    Role,
    SignIn,
    Tenant,
    Token,
    TokenKind,
    User,
)
from app.runs.idempotency import IdempotencyKey
from app.runs.models import Run
from app.runs.provider_objects import ProviderObject, ProviderObjectKind
from app.runs.streams import Stream
from app.usage.kinds import Basis, Kind
from app.usage.models import ProviderCall, UsageEntry
from tests.results import Results

pytestmark = pytest.mark.proof(1, "row security")

Verb = Literal["select", "update", "delete", "insert", "upsert"]
VERBS: tuple[Verb, ...] = ("select", "update", "delete", "insert", "upsert")

SUPERUSER = "none"  # what set_config('role', …) calls the role that logged in
REFUSED = "42501"

MUTANTS = {
    "row security off": ["ALTER TABLE messages DISABLE ROW LEVEL SECURITY"],
    "every row may be seen": ["ALTER POLICY tenant ON runs USING (true)"],
    "every row may be written": ["ALTER POLICY tenant ON conversations WITH CHECK (true)"],
    "a second, wider policy": ["CREATE POLICY support ON attachments USING (true)"],
    "no tenant means all": [
        "ALTER POLICY tenant ON usage_entries USING (app.tenant() IS NULL OR tenant_id = app.tenant())"
    ],
    "a table owned by the role, not forced": [
        "ALTER TABLE api_keys OWNER TO easel_app",
        "ALTER TABLE api_keys NO FORCE ROW LEVEL SECURITY",
    ],
    "a role that bypasses": ["ALTER ROLE easel_app BYPASSRLS"],
    "a tenant's name for all": ["ALTER POLICY tenant ON tenants USING (true)"],
}

# Of the tables whose rows have no id.
PRIMARY_KEYS = {
    "memberships": "tenant_id, user_id",
    "idempotency_keys": "tenant_id, user_id, route, key",
    "attachment_words": "tenant_id, user_id, word, attachment_id",
    "orphan_candidates": "tenant_id, key",
    "object_removals": "tenant_id, prefix",
    "provider_calls": "tenant_id, run_id, number",
    "provider_objects": "tenant_id, provider_id",
    "streams": "tenant_id, run_id, id",
    "usage_counters": "tenant_id, user_id",
}

UNPROTECTED = """
SELECT relname FROM pg_class c WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace
AND relname <> 'alembic_version' AND NOT (
  relrowsecurity AND relforcerowsecurity AND EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid)
  AND NOT relowner::regrole::text = ANY (ARRAY['easel_app', 'easel_identity'])
)
"""
POWERFUL_ROLES = """
SELECT rolname FROM pg_roles WHERE rolname IN ('easel_app', 'easel_identity', 'easel_backup')
AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication OR rolcanlogin)
"""
TENANT_TABLES = """
SELECT relname, CASE relname WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END AS key FROM pg_class c
WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND (relname = 'tenants' OR EXISTS (
  SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'tenant_id' AND NOT attisdropped))
ORDER BY relname
"""
# One line for each right: "table select", or "table select column" where only columns are granted.
# Of tables and of their columns, from where they are kept: the views that the standard asks for take seconds.
RIGHTS = """
WITH granted (name, role, privilege) AS (
  SELECT relname, grantee, privilege_type FROM pg_class, aclexplode(relacl)
  WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
  UNION ALL SELECT relname || '.' || attname, grantee, privilege_type
  FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid, aclexplode(attacl)
  WHERE relnamespace = 'public'::regnamespace AND relkind = 'r')
SELECT format('%s %s%s', split_part(name, '.', 1), lower(privilege), ' ' || nullif(split_part(name, '.', 2), ''))
FROM granted WHERE role = CAST(:role AS regrole)
"""


@dataclass(frozen=True)
class Cell:
    table: str
    key: str
    verb: Verb
    tenant: UUID | None


@dataclass(frozen=True)
class World:
    """Two tenants with one row in every table; `connection` is the superuser's, rolled back at the end."""

    connection: AsyncConnection
    database: Database
    ours: UUID
    theirs: UUID

    async def cells(self) -> list[Cell]:
        tables = (await self.connection.execute(text(TENANT_TABLES))).all()
        return [
            Cell(name, key, verb, tenant)
            for (name, key), verb, tenant in itertools.product(tables, VERBS, (self.ours, None))
        ]


@pytest.fixture
async def world(database_url: str) -> AsyncGenerator[World]:
    database = Database(database_url, pool_size=3)
    ours, theirs = uuid7(), uuid7()
    async with AsyncSession(database.engine) as session, session.begin():
        for row in (*rows_of(ours), *rows_of(theirs)):
            session.add(row)
            await session.flush()
    async with database.engine.connect() as connection:
        yield World(connection, database, ours, theirs)
    await database.close()


def rows_of(tenant: UUID) -> list[Base]:
    """One row for every table, parents first."""
    user, sign_in, conversation, message, run = (uuid7() for _ in range(5))
    owned: dict[str, Any] = {"tenant_id": tenant, "user_id": user}
    return [
        Tenant(id=tenant, name="A tenant"),
        User(id=user, email=f"{user}@example.org", password_hash="-"),
        Membership(**owned, role=Role.OWNER),
        ApiKey(**owned, name="A key", secret_hash=secrets.token_bytes(32), hint="abcd"),
        SignIn(id=sign_in, user_id=user),
        Token(
            sign_in_id=sign_in,
            kind=TokenKind.ACCESS,
            secret_hash=secrets.token_bytes(32),
            expires_at=text("now()"),
        ),
        PasswordReset(user_id=user, secret_hash=secrets.token_bytes(32), expires_at=text("now()")),
        AttemptCount(subject=secrets.token_bytes(32), count=1, expires_at=text("now()")),
        Invitation(
            tenant_id=tenant,
            email="grace@example.org",
            role=Role.MEMBER,
            secret_hash=secrets.token_bytes(32),
            expires_at=text("now()"),
        ),
        AuditEntry(
            **owned,
            actor_type=ActorType.USER,
            actor_id=user,
            action=Action.TENANT_CREATED,
            target_type=TargetType.TENANT,
            target_id=tenant,
        ),
        Conversation(**owned, id=conversation, agent_key="designer", title="A cat"),
        Message(tenant_id=tenant, id=message, conversation_id=conversation, role="user", text="A cat"),
        Run(
            **owned,
            id=run,
            conversation_id=conversation,
            agent_key="designer",
            input_message_id=message,
            output_message_id=message,
        ),
        Attachment(
            **owned,
            conversation_id=conversation,
            run_id=run,
            kind=AttachmentKind.GENERATED,
            filename="cat.png",
            mime_type="image/png",
            size_bytes=1,
            sha256="-",
            storage_key="-",
            tool_call_id="ig_1",
            prompt="cat",
        ),
        Export(**owned, scope=ExportScope.ME, expires_at=text("now()")),
        Erasure(receipt_hash=secrets.token_bytes(32), kind=ErasureKind.MEMBER, **owned),
        ObjectRemoval(tenant_id=tenant, prefix="once", due_at=text("now()")),
        ProviderObject(tenant_id=tenant, provider_id="resp_1", kind=ProviderObjectKind.RESPONSE, run_id=run),
        ProviderCall(
            **owned,
            run_id=run,
            number=1,
            agent_key="designer",
            model="-",
            background=False,
            characters=1,
            given_tokens=0,
        ),
        UsageEntry(
            **owned,
            run_id=run,
            call=1,
            agent_key="designer",
            model="-",
            kind=Kind.INPUT,
            quantity=1,
            basis=Basis.REPORTED,
        ),
        Stream(tenant_id=tenant, run_id=run, id=uuid7(), user_id=owned["user_id"]),
        IdempotencyKey(
            **owned,
            route="POST /v1/runs",
            key="once",
            fingerprint=b"-",
            run_id=run,
            status=202,
            headers={},
            body="{}",
            expires_at=text("now()"),
        ),
        OrphanCandidate(tenant_id=tenant, key="once", marked_at=text("now()"), seen_at=text("now()")),
    ]


async def test_every_table_is_under_forced_row_security(world: World) -> None:
    assert (await world.connection.scalars(text(UNPROTECTED))).all() == []


async def test_the_two_roles_have_no_power_over_the_server(world: World) -> None:
    assert (await world.connection.scalars(text(POWERFUL_ROLES))).all() == []


async def test_no_view_runs_with_its_owners_rights(world: World) -> None:
    views = """SELECT relname FROM pg_class WHERE relkind IN ('v', 'm') AND relnamespace = 'public'::regnamespace
    AND NOT coalesce(reloptions, '{}') @> '{security_invoker=true}'"""
    assert (await world.connection.scalars(text(views))).all() == []


async def test_no_sql_reaches_another_tenants_rows(world: World, results: Results) -> None:
    cells = await world.cells()
    reached = [cell for cell in cells if await reach(world, cell, APP_ROLE)]
    tables = len({cell.table for cell in cells})
    tried = f"{len(cells)} cells: {tables} tables, {len(VERBS)} verbs, another tenant or none"
    results(1, "foreign rows", tried=tried, kept=f"{len(cells) - len(reached)} reach 0 rows")
    assert reached == []


async def test_the_same_sql_reaches_them_without_row_security(world: World) -> None:
    assert [cell for cell in await world.cells() if not await reach(world, cell, SUPERUSER)] == []


async def test_the_own_rows_are_seen_in_every_table(world: World) -> None:
    for cell in await world.cells():
        if cell.tenant:
            async with world.database.tenant(world.ours) as session:
                # The counters of an entry: the tenant's and the user's.
                expected = 2 if cell.table == "usage_counters" else 1
                assert await session.scalar(text(f"SELECT count(*) FROM {cell.table}")) == expected, cell.table


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_a_weakened_policy_is_noticed(world: World, mutant: str) -> None:
    for statement in MUTANTS[mutant]:
        await world.connection.execute(text(statement))
    reached = [cell for cell in await world.cells() if await reach(world, cell, APP_ROLE)]
    assert reached


async def test_people_are_seen_only_in_a_tenant_of_theirs_and_without_their_passwords(world: World) -> None:
    async with world.database.tenant(world.ours) as session:
        seen = (await session.execute(text("SELECT id, email, created_at FROM users"))).all()
        assert len(seen) == 1
        with pytest.raises(DBAPIError, match="permission denied"):
            await session.execute(text("SELECT password_hash FROM users"))
        await session.rollback()


@pytest.mark.parametrize("role", [APP_ROLE, IDENTITY_ROLE])
async def test_a_role_has_these_rights_and_no_more(world: World, role: str) -> None:
    rights = set((await world.connection.scalars(text(RIGHTS), {"role": role})).all())
    assert rights == EXPECTED_RIGHTS[role]


async def test_the_sweep_sees_what_is_open_and_nothing_else(world: World) -> None:
    queries = {
        "runs": "SELECT id, tenant_id FROM runs",
        "attachments": "SELECT id, tenant_id FROM attachments",
        "provider_calls": "SELECT run_id, tenant_id FROM provider_calls",
    }
    async with world.database.identity() as session:
        assert {table: len((await session.execute(text(query))).all()) for table, query in queries.items()} == {
            "runs": 2,
            "attachments": 2,
            "provider_calls": 2,
        }
    async with world.database.tenant(world.ours) as session:
        await session.execute(text("UPDATE provider_calls SET state = 'settled'"))
        await session.execute(text("UPDATE runs SET status = 'completed'"))
        await session.execute(text("UPDATE attachments SET status = 'stored', variants = '[]'"))
    async with world.database.identity() as session:
        for query in queries.values():
            assert [row.tenant_id for row in await session.execute(text(query))] == [world.theirs]


NEVER = {
    APP_ROLE: (
        *("tenants", "users", "audit_entries", "usage_entries", "provider_calls", "erasures", "object_removals"),
        *("provider_objects", "plans", "usage_counters", "streams"),
    ),
    IDENTITY_ROLE: (
        *("memberships", "conversations", "messages", "runs", "attachments", "usage_entries", "provider_calls"),
        *("erasures", "plans", "usage_counters"),
    ),
}


@pytest.mark.parametrize("role", [APP_ROLE, IDENTITY_ROLE])
async def test_what_only_an_erasure_may_delete_is_refused_to_whoever_tries_directly(world: World, role: str) -> None:
    for table in NEVER[role]:
        async with world.connection.begin_nested() as savepoint:
            await become(world, role, world.ours)
            with pytest.raises(DBAPIError) as refused:
                await world.connection.execute(text(f"DELETE FROM {table}"))
            assert getattr(refused.value.orig, "sqlstate", None) == REFUSED, table
            await savepoint.rollback()


async def test_identity_deletes_a_tenant_a_log_or_a_user_only_where_that_was_requested(world: World) -> None:
    parts = {"tenants": (ErasureKind.TENANT, "id"), "audit_entries": (ErasureKind.TENANT, "tenant_id")}
    parts["users"] = (ErasureKind.ACCOUNT, "id")
    for table, (kind, key) in parts.items():
        async with world.connection.begin_nested() as savepoint:
            await become(world, IDENTITY_ROLE, None)
            assert (await world.connection.execute(text(f"DELETE FROM {table}"))).rowcount == 0
            await world.connection.execute(text("RESET ROLE"))
            ids = {"tenant_id": world.ours, "user_id": None}
            if kind == ErasureKind.ACCOUNT:
                found = "SELECT user_id FROM memberships WHERE tenant_id = :ours"
                member = await world.connection.scalar(text(found), {"ours": world.ours})
                ids = {"tenant_id": None, "user_id": member}
            await world.connection.execute(
                text(
                    "INSERT INTO erasures (id, created_at, receipt_hash, kind, tenant_id, user_id, status)"
                    " VALUES (:id, now(), '', :kind, :tenant_id, :user_id, 'queued')"
                ),
                {"id": uuid7(), "kind": kind, **ids},
            )
            await become(world, IDENTITY_ROLE, None)
            gone = await world.connection.scalars(text(f"DELETE FROM {table} RETURNING {key}"))
            assert gone.all() == [ids["tenant_id"] or ids["user_id"]]
            await savepoint.rollback()


async def become(world: World, role: str, tenant: UUID | None) -> None:
    await world.connection.execute(
        text("SELECT set_config('role', :role, true), set_config('app.tenant_id', :tenant, true)"),
        {"role": role, "tenant": str(tenant or "")},
    )


async def reach(world: World, cell: Cell, role: str) -> int:
    """How many rows that are not the cell's tenant's the role has seen or changed; a refusal is none."""
    connection = world.connection
    before = await foreign_rows(connection, cell)
    assert before, f"{cell.table} has no row that could be reached: add it to rows_of"
    statement, values = await statement_of(world, cell)
    savepoint = await connection.begin_nested()
    try:
        await become(world, role, cell.tenant)
        result = await connection.execute(text(statement), values)
        if cell.verb == "select":
            return sum(1 for row in result if row.key != cell.tenant)
        await connection.execute(text("RESET ROLE"))
        return len(before ^ await foreign_rows(connection, cell))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != REFUSED:
            raise
        return 0
    finally:
        await savepoint.rollback()


async def foreign_rows(connection: AsyncConnection, cell: Cell) -> set[tuple[str, str]]:
    """Where each version of a row lies, and who wrote it: any change of a row changes its entry."""
    query = f"SELECT ctid::text, xmin::text FROM {cell.table} WHERE {cell.key} IS DISTINCT FROM :tenant"
    return {(row[0], row[1]) for row in await connection.execute(text(query), {"tenant": cell.tenant})}


async def statement_of(world: World, cell: Cell) -> tuple[str, dict[str, str]]:
    """The verb without a WHERE, or with a copy of a row of theirs."""
    table, key = cell.table, cell.key
    if cell.verb == "select":
        return f"SELECT {key} AS key FROM {table}", {}
    if cell.verb == "delete":
        return f"DELETE FROM {table}", {}
    column = await updatable_column(world.connection, cell)
    if cell.verb == "update":
        return f"UPDATE {table} SET {column} = {column}", {}
    row = await row_of_theirs(world, cell)
    columns = ", ".join(row)
    source = f"jsonb_populate_record(NULL::{table}, CAST(:row AS jsonb))"
    insert = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {source}"
    if cell.verb == "insert":
        return insert, {"row": json.dumps(row | await fresh_values(world, cell, row))}
    primary = PRIMARY_KEYS.get(table, "id")
    return f"{insert} ON CONFLICT ({primary}) DO UPDATE SET {column} = EXCLUDED.{column}", {"row": json.dumps(row)}


async def updatable_column(connection: AsyncConnection, cell: Cell) -> str:
    """One that easel_app may update, where there is one, so that only row security is in the way."""
    columns = """SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attnum > 0
    AND NOT attisdropped AND has_column_privilege('easel_app', attrelid, attnum, 'UPDATE') ORDER BY attname"""
    return await connection.scalar(text(columns), {"table": cell.table}) or cell.key


async def row_of_theirs(world: World, cell: Cell) -> dict[str, Any]:
    generated = "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attgenerated <> ''"
    query = f"SELECT to_jsonb(t) - ARRAY({generated}) FROM {cell.table} t WHERE {cell.key} = :theirs"
    values = {"theirs": world.theirs, "table": cell.table}
    return cast(dict[str, Any], await world.connection.scalar(text(query), values))


async def fresh_values(world: World, cell: Cell, row: dict[str, Any]) -> dict[str, str]:
    """What must differ for a copy not to break a key."""
    if cell.table == "memberships":
        query = "SELECT user_id::text FROM memberships WHERE tenant_id = :ours"
        return {"user_id": cast(str, await world.connection.scalar(text(query), {"ours": world.ours}))}
    fresh = {"id": str(uuid7()), "key": "twice", "tool_call_id": "ig_2", "secret_hash": f"\\x{secrets.token_hex(32)}"}
    fresh |= {"word": "dog", "email": "hopper@example.org", "prefix": "twice", "provider_id": "resp_2"}
    if cell.table == "exports":
        fresh["scope"] = "tenant"
    if cell.table == "usage_entries":
        fresh["kind"] = "output_tokens"
    if cell.table == "provider_calls":
        fresh["number"] = "2"
    if cell.table == "usage_counters":
        fresh["user_id"] = str(uuid7())
    return {name: value for name, value in fresh.items() if name in row}


def _rights(table: str, *rights: str) -> set[str]:
    return {f"{table} {right}" for right in rights}


def _columns(table: str, right: str, names: str) -> set[str]:
    return {f"{table} {right} {name}" for name in names.split()}


EXPECTED_RIGHTS = {
    APP_ROLE: {
        *_rights("tenants", "select"),
        *_columns("tenants", "update", "name retention_days"),
        *_columns("users", "select", "id email name created_at"),
        *_rights("memberships", "select", "insert", "delete"),
        *_columns("memberships", "update", "role"),
        *_rights("invitations", "select", "insert", "update", "delete"),
        *_rights("audit_entries", "select", "insert"),
        *_rights("api_keys", "select", "insert"),
        *_columns("api_keys", "update", "name expires_at revoked_at"),
        *_rights("conversations", "select", "insert", "update", "delete"),
        *_rights("messages", "select", "insert", "update", "delete"),
        *_rights("runs", "select", "insert", "update", "delete"),
        *_rights("attachments", "select", "insert", "update", "delete"),
        *_rights("attachment_words", "select", "insert"),
        *_rights("usage_entries", "select", "insert"),
        *_rights("provider_calls", "select", "insert"),
        *_columns("provider_calls", "update", "response_id state settled_at booked_entries"),
        *_rights("plans", "select"),
        *_rights("usage_counters", "select", "insert"),
        *_columns("usage_counters", "update", "full_at month spent_nano day images"),
        *_rights("streams", "select", "insert"),
        *_rights("exports", "select", "insert", "update", "delete"),
        *_rights("erasures", "select", "insert"),
        *_columns("erasures", "update", "status lease_until rows_gone_at completed_at rows"),
        *_rights("object_removals", "select", "insert"),
        *_columns("object_removals", "update", "erasure_id due_at"),
        *_rights("provider_objects", "select", "insert"),
        *_columns("provider_objects", "update", "erasure_id"),
        *_rights("idempotency_keys", "select", "insert", "delete"),
        *_rights("orphan_candidates", "select", "insert", "delete"),
        *_columns("orphan_candidates", "update", "seen_at"),
    },
    IDENTITY_ROLE: {
        *_rights("tenants", "select", "insert", "delete"),
        *_columns("tenants", "update", "plan suspended_at"),
        *_rights("users", "select", "insert", "delete"),
        *_columns("users", "update", "name password_hash disabled_at"),
        *_rights("sign_ins", "select", "insert", "delete"),
        *_columns("sign_ins", "update", "last_used_at ended_at"),
        *_rights("invitations", "select", "delete"),
        *_rights("password_resets", "select", "insert", "delete"),
        *_rights("attempt_counts", "select", "insert", "update", "delete"),
        *_rights("memberships", "select", "insert"),
        *_rights("api_keys", "select"),
        *_columns("api_keys", "update", "last_used_at"),
        *_rights("tokens", "select", "insert", "update", "delete"),
        *_columns("runs", "select", "id tenant_id status attempt created_at lease_until unrecorded_images"),
        *_columns("attachments", "select", "id tenant_id status created_at run_id storage_key variants"),
        *_columns("exports", "select", "id tenant_id status created_at lease_until expires_at"),
        *_rights("audit_entries", "delete"),
        *_columns("audit_entries", "select", "id tenant_id action target_id"),
        *_rights("erasures", "select", "insert"),
        *_columns(
            "erasures",
            "update",
            "status lease_until rows_gone_at completed_at rows objects size_bytes provider",
        ),
        *_rights("object_removals", "select", "delete"),
        *_columns("object_removals", "update", "due_at"),
        *_columns("provider_calls", "select", "tenant_id run_id number asked_at response_id state"),
        *_rights("plans", "select", "insert", "update"),
        *_rights("streams", "delete"),
        *_columns("streams", "select", "tenant_id run_id id seen_at"),
        *_columns("streams", "update", "seen_at"),
        *_rights("provider_objects", "select", "delete"),
        *_columns("provider_objects", "update", "due_at"),
        *_rights("idempotency_keys", "delete"),
        *_columns("idempotency_keys", "select", "expires_at"),
    },
}
