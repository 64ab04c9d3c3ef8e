"""Which run of a tenant a worker claims: the oldest that waits for nothing, and never more than the tenant may have."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID

import pytest

from app.conversations.models import Conversation
from app.db import Database, uuid7
from app.runs.models import Run
from app.runs.streams import Stream
from app.worker.lease import Claimed, claim, release
from tests import timeouts
from tests.worker.test_clocks import queued_run

COPIED = ("tenant_id", "conversation_id", "user_id", "agent_key", "status", "options", "input_message_id")


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    database = Database(database_url, pool_size=2)
    yield database
    await database.close()


async def test_the_oldest_run_is_claimed_and_the_rest_of_its_conversation_waits(database: Database) -> None:
    first = await queued_run(database)
    await run_like(database, first)
    elsewhere = await run_like(database, first, conversation_id=await copied_conversation(database, first))
    stranger = await queued_run(database)
    assert await claimed(database, first) == (first.id, True)
    assert await claimed(database, first) == (elsewhere.id, True)
    assert await claimed(database, first) is None
    assert await claimed(database, stranger) == (stranger.id, False)


async def test_a_tenant_at_its_limit_gets_no_run_but_one_that_was_lost(database: Database) -> None:
    first = await queued_run(database)
    await run_like(database, first, conversation_id=await copied_conversation(database, first))
    held = await claim_of(database, first, most=1)
    assert held is not None
    assert await claimed(database, first, most=1) is None
    await release(database, held.run)
    assert await claimed(database, first, most=1) == (first.id, True)
    assert await claimed(database, first, most=1) is None


async def test_what_another_worker_is_claiming_is_passed_over(database: Database) -> None:
    first = await queued_run(database)
    second = await run_like(database, first, conversation_id=await copied_conversation(database, first))
    async with database.tenant(first.tenant_id) as session:
        slow = await claim(session, first.tenant_id, most=9, lease_seconds=20)
        assert slow is not None
        assert await claimed(database, first) == (second.id, True)
        assert await claimed(database, first) is None
    assert slow.run.id == first.id


async def test_a_run_that_is_just_being_followed_is_claimed_all_the_same(database: Database) -> None:
    run = await queued_run(database)
    async with database.tenant(run.tenant_id) as session:
        # Not committed yet, as while the request of a reader is answered.
        session.add(Stream(tenant_id=run.tenant_id, run_id=run.id, id=uuid7(), user_id=run.user_id))
        await session.flush()
        async with asyncio.timeout(timeouts.PATIENCE):
            assert await claimed(database, run) == (run.id, False)


async def claimed(database: Database, like: Run, *, most: int = 9) -> tuple[UUID, bool] | None:
    found = await claim_of(database, like, most=most)
    return found and (found.run.id, found.more)


async def claim_of(database: Database, like: Run, *, most: int) -> Claimed | None:
    async with database.tenant(like.tenant_id) as session:
        return await claim(session, like.tenant_id, most=most, lease_seconds=20)


async def run_like(database: Database, run: Run, **changes: object) -> Run:
    copy = Run(**{name: getattr(run, name) for name in COPIED} | changes, id=uuid7(), output_message_id=uuid7())
    async with database.tenant(run.tenant_id) as session:
        session.add(copy)
    return copy


async def copied_conversation(database: Database, run: Run) -> UUID:
    conversation = Conversation(
        id=uuid7(), title="A dog", tenant_id=run.tenant_id, user_id=run.user_id, agent_key=run.agent_key
    )
    async with database.tenant(run.tenant_id) as session:
        session.add(conversation)
    return conversation.id
