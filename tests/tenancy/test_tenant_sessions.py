"""Promise 2: a transaction has the role and the tenant it was opened for, also after others were cancelled."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import cast
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from app.conversations.models import Conversation
from app.db import APP_ROLE, IDENTITY_ROLE, Database, enter_tenant, uuid7
from app.identity.models import Membership, Role, Tenant, User
from tests.results import Results

CANCELLED_SHARE = 0.3
CONCURRENCY = 8

# Session-wide settings instead of the transaction's: the way to do it wrong.
LEAVE_BEHIND = "SELECT set_config('role', 'easel_app', false), set_config('app.tenant_id', :tenant, false)"


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    database = Database(database_url, pool_size=2)
    yield database
    await database.close()


async def test_each_door_has_its_role_and_leaves_it_at_the_end(database: Database) -> None:
    tenant = uuid7()
    async with database.tenant(tenant) as session:
        assert await session.scalar(text("SELECT current_user")) == APP_ROLE
        async with session.begin_nested():
            assert await session.scalar(text("SELECT current_user")) == APP_ROLE
            assert await session.scalar(text("SELECT app.tenant()")) == tenant
    async with database.identity() as session:
        assert await session.scalar(text("SELECT current_user")) == IDENTITY_ROLE
        assert await session.scalar(text("SELECT app.tenant()")) is None
    async with database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT current_user = session_user"))
        assert await connection.scalar(text("SELECT app.tenant()")) is None


async def test_a_savepoint_that_is_rolled_back_keeps_role_and_tenant(database: Database) -> None:
    tenant = uuid7()
    async with database.tenant(tenant) as session:
        savepoint = await session.begin_nested()
        with pytest.raises(ProgrammingError):
            await session.execute(text("SELECT * FROM tokens"))
        await savepoint.rollback()
        assert await session.scalar(text("SELECT current_user")) == APP_ROLE
        assert await session.scalar(text("SELECT app.tenant()")) == tenant


async def test_identity_that_has_entered_a_tenant_has_no_way_back(database: Database) -> None:
    ours, theirs = await make_tenants(database, 2)
    async with database.identity() as session:
        found = await session.scalars(select(Membership))
        assert {row.tenant_id for row in found} == {ours, theirs}
        await enter_tenant(session, ours)
        assert not list(session)
        await assert_within(session, ours)
        savepoint = await session.begin_nested()
        with pytest.raises(ProgrammingError):
            await session.execute(text("SELECT * FROM tokens"))
        await savepoint.rollback()
        await assert_within(session, ours)
        await session.commit()
        await assert_within(session, ours)
    async with database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT current_user = session_user"))


async def test_identity_may_enter_a_tenant_between_two_transactions(database: Database) -> None:
    ours, _ = await make_tenants(database, 2)
    async with database.identity() as session:
        await session.execute(text("SELECT * FROM tokens"))
        await session.commit()
        await enter_tenant(session, ours)
        await assert_within(session, ours)


async def assert_within(session: AsyncSession, tenant: UUID) -> None:
    assert await session.scalar(text("SELECT current_user")) == APP_ROLE
    assert set(await session.scalars(text("SELECT tenant_id FROM memberships"))) == {tenant}


async def test_a_transaction_of_nobody_raises(database: Database) -> None:
    with pytest.raises(RuntimeError, match="needs a tenant"):
        async with database.tenant(cast(UUID, None)) as session:
            await session.execute(text("SELECT 1"))


@pytest.mark.parametrize(
    ("transactions", "tenants", "pool_size"),
    [(500, 10, 2), pytest.param(10_000, 50, 5, marks=[pytest.mark.prove, pytest.mark.timeout(600)])],
)
async def test_cancelled_transactions_leave_nothing_behind(
    database_url: str, transactions: int, tenants: int, pool_size: int, results: Results
) -> None:
    seed = random.randrange(2**32)
    database = Database(database_url, pool_size=pool_size)
    try:
        ids = await make_tenants(database, tenants)
        done, wrong = await storm(database, ids, transactions, random.Random(seed))
        idle = await idle_in_transaction(database)
    finally:
        await database.close()
    kept = f"{done} ended, {wrong} wrong rows, {idle} idle in transaction"
    results(2, "cancelled transactions", tried=f"{transactions} transactions, {tenants} tenants", kept=kept, seed=seed)
    assert 0 < done < transactions
    assert (wrong, idle) == (0, 0)


async def test_settings_that_outlive_their_transaction_would_be_noticed(database: Database) -> None:
    ours, theirs = await make_tenants(database, 2)
    async with database.engine.begin() as connection:
        await connection.execute(text(LEAVE_BEHIND), {"tenant": str(theirs)})
    async with database.engine.connect() as connection:
        rows = await connection.scalars(text("SELECT tenant_id FROM conversations"))
        assert count_wrong(list(rows), ours) == 1


async def make_tenants(database: Database, count: int) -> list[UUID]:
    """Each with one user and one conversation."""
    ids = [uuid7() for _ in range(count)]
    async with AsyncSession(database.engine) as session, session.begin():
        for tenant in ids:
            user = uuid7()
            session.add(Tenant(id=tenant, name="A tenant"))
            session.add(User(id=user, email=f"{user}@example.org", password_hash="-"))
            await session.flush()
            session.add(Membership(tenant_id=tenant, user_id=user, role=Role.OWNER))
            session.add(Conversation(tenant_id=tenant, user_id=user, agent_key="designer", title="A cat"))
    return ids


async def storm(database: Database, ids: list[UUID], transactions: int, chance: random.Random) -> tuple[int, int]:
    """How many transactions came to their end, and how many wrong rows they saw."""
    gate = asyncio.Semaphore(CONCURRENCY)
    outcomes: list[int] = []

    async def one(tenant: UUID, patience: float | None) -> None:
        async with gate:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    outcomes.append(await look_around(database, tenant))

    await asyncio.gather(*(one(chance.choice(ids), impatience(chance)) for _ in range(transactions)))
    return len(outcomes), sum(outcomes)


def impatience(chance: random.Random) -> float | None:
    """Seconds until the transaction is cancelled, anywhere between its start and its end."""
    return chance.uniform(0, 0.01) if chance.random() < CANCELLED_SHARE else None


async def look_around(database: Database, tenant: UUID) -> int:
    query = text("SELECT tenant_id FROM conversations, pg_sleep(0.001)")
    async with database.tenant(tenant) as session:
        rows = [*await session.scalars(query), *await session.scalars(query)]
    return count_wrong(rows, tenant) + (len(rows) != 2)


def count_wrong(rows: list[UUID], tenant: UUID) -> int:
    return sum(1 for row in rows if row != tenant)


async def idle_in_transaction(database: Database) -> int:
    query = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
    AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"""
    async with database.engine.connect() as connection:
        return await connection.scalar(text(query)) or 0
