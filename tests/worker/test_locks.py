"""A worker and whoever deletes its conversation lock the same rows in the same order: neither breaks the other off."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from sqlalchemy import select, text, update

from app.conversations.models import Conversation
from app.db import Database, now
from app.runs.models import Run, RunStatus
from app.usage.kinds import Kind, Quantity
from app.usage.ledger import Settlement
from app.usage.prices import Priced
from app.worker import held_run
from app.worker.booking import Booking
from tests.app_server import ApiUser, AppServer, one

# Longer than Postgres takes to notice a deadlock.
NOTICED_SECONDS = 1.5


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


@pytest.mark.slow
def test_images_are_charged_while_their_conversation_is_deleted(server: AppServer, ada: ApiUser) -> None:
    events = ada.draw()
    run_id = UUID(events[0]["run"]["id"])
    object_id = UUID(one(events, "attachment.created")["attachment"]["object_id"])
    assert server.settings.database_url
    asyncio.run(charge(server.settings.database_url.get_secret_value(), ada, run_id, object_id))


async def charge(url: str, ada: ApiUser, run_id: UUID, object_id: UUID) -> None:
    database = Database(url, pool_size=3)
    tenant_id = UUID(ada.signed_up["tenant"]["id"])
    try:
        async with database.tenant(tenant_id) as session:
            goes_on = {"status": RunStatus.RUNNING, "lease_until": now() + timedelta(hours=1)}
            run = (await session.scalars(update(Run).where(Run.id == run_id).values(goes_on).returning(Run))).one()
        entry = Priced(Quantity(Kind.IMAGE_OUTPUT, "gpt-image-2", 1, tool_call_id="ig_1"), Decimal(1), 1)
        settlement = Settlement(tenant_id, run.user_id, run_id, 1, "designer", None, [entry], {"ig_1": object_id})
        async with database.tenant(tenant_id) as deletion:
            chosen = select(Conversation.id).where(Conversation.id == run.conversation_id)
            await deletion.execute(chosen.with_for_update())
            await deletion.execute(text("DELETE FROM attachments WHERE run_id = :run"), {"run": run_id})
            booking = Booking(settlement=settlement)
            writing = asyncio.ensure_future(held_run.write(database, run, booking, attempt=run.attempt))
            await asyncio.sleep(NOTICED_SECONDS)
            assert not writing.done()
            await deletion.execute(text("DELETE FROM runs WHERE id = :run"), {"run": run_id})
        assert await writing is False
    finally:
        await database.close()
