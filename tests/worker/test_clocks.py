"""A worker whose clock is wrong takes over no run that lives, and loses none of its own."""

from collections.abc import AsyncGenerator
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select

from app.conversations.models import Conversation
from app.db import Database, now, uuid7
from app.identity.models import Membership, Role, Tenant, User
from app.runs.models import Run, RunOptions, RunStatus
from app.worker.held_run import write
from app.worker.lease import claim, release

LEASE_SECONDS = 20.0
OFF = [timedelta(minutes=-1), timedelta(minutes=1)]


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    database = Database(database_url, pool_size=2)
    yield database
    await database.close()


@pytest.mark.parametrize("off", OFF, ids=["slow", "fast"])
async def test_a_wrong_clock_takes_over_no_run_and_loses_none(
    database: Database, monkeypatch: pytest.MonkeyPatch, off: timedelta
) -> None:
    living, its_own = await queued_run(database), await queued_run(database)
    assert await claimed(database, living)
    with monkeypatch.context() as patch:
        patch.setattr("app.worker.lease.now", lambda: now() + off)
        assert not await claimed(database, living)
        run = await claimed(database, its_own)
        assert run is not None
    assert not await claimed(database, its_own)
    until, clock = await lease_of(database, run)
    assert timedelta(0) < until - clock <= timedelta(seconds=LEASE_SECONDS)
    with monkeypatch.context() as patch:
        patch.setattr("app.worker.lease.now", lambda: now() + off)
        await release(database, run)
    assert await claimed(database, its_own)
    assert not await write(database, run, last_seq=7)


async def claimed(database: Database, run: Run) -> Run | None:
    async with database.tenant(run.tenant_id) as session:
        found = await claim(session, run.tenant_id, most=1, lease_seconds=LEASE_SECONDS)
        return found and found.run


async def lease_of(database: Database, run: Run) -> tuple[datetime, datetime]:
    """When it ends, and what the time is, both by Postgres' clock."""
    async with database.tenant(run.tenant_id) as session:
        found = await session.execute(select(Run.lease_until, func.clock_timestamp()).where(Run.id == run.id))
        until, clock = found.one()
    assert until is not None
    return until, clock


async def queued_run(database: Database) -> Run:
    tenant, user = Tenant(id=uuid7(), name="A"), User(id=uuid7(), email=f"{uuid7()}@example.org", password_hash="-")
    async with database.identity() as session:
        session.add_all([tenant, user])
        await session.flush()
        session.add(Membership(tenant_id=tenant.id, user_id=user.id, role=Role.OWNER))
    owned = {"tenant_id": tenant.id, "user_id": user.id, "agent_key": "assistant"}
    conversation = Conversation(id=uuid7(), title="A cat", **owned)
    run = Run(
        id=uuid7(),
        conversation_id=conversation.id,
        status=RunStatus.QUEUED,
        options=RunOptions(image={}, tool_choice=None, edit=None, mask=None),
        input_message_id=uuid7(),
        output_message_id=uuid7(),
        **owned,
    )
    async with database.tenant(tenant.id) as session:
        session.add(conversation)
        await session.flush()
        session.add(run)
    return run
