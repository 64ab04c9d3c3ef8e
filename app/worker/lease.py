"""A worker's lease of a run: claimed by compare-and-set, renewed, released; each write depends on the attempt."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.conversations.models import Message, MessageRole
from app.db import Database, now, retry_while_unavailable
from app.runs.models import OPEN, Run, RunError, RunStatus
from app.usage.models import UsageEntry

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another attempt holds the run: this one must write nothing more."""


async def claim(
    database: Database, tenant_id: UUID, run_id: UUID, *, lease_seconds: float, lost_attempt: int | None = None
) -> Run | None:
    """Claim a queued run for this worker, or one whose `lost_attempt` has let its lease expire.

    None where another worker has it, it has ended, or an earlier run of the conversation is still open. A worker renews
    its lease every third of `lease_seconds`; after that time the run counts as abandoned.
    """
    values: dict[str, Any] = {"attempt": Run.attempt + 1, "lease_until": now() + timedelta(seconds=lease_seconds)}
    before = aliased(Run)
    if lost_attempt is None:
        values |= {"status": RunStatus.RUNNING, "started_at": now()}
        earlier = select(before.id).where(
            before.conversation_id == Run.conversation_id, before.id < Run.id, before.status.in_(OPEN)
        )
        free = (Run.status == RunStatus.QUEUED, ~earlier.exists())
    else:
        free = (Run.status == RunStatus.RUNNING, Run.attempt == lost_attempt, Run.lease_until <= now())
    async with database.tenant(tenant_id) as session:
        claimed = await session.scalars(update(Run).where(Run.id == run_id, *free).values(values).returning(Run))
        return claimed.one_or_none()


async def keep_renewing(database: Database, run: Run, lease_seconds: float) -> None:
    """Return once another attempt holds the run."""
    while True:
        await asyncio.sleep(lease_seconds / 3)
        try:
            if not await write(database, run, lease_until=now() + timedelta(seconds=lease_seconds)):
                return
        except Exception:
            log.warning("run.renewal_failed", exc_info=True)


async def release(database: Database, run: Run) -> None:
    """Let another worker claim the run at once."""
    await write(database, run, lease_until=now())


@retry_while_unavailable
async def write(database: Database, run: Run, **values: Any) -> bool:
    """Change a run that this worker holds; False where another attempt holds it."""
    async with database.tenant(run.tenant_id) as session:
        return await _write(session, run, **values)


async def _write(session: AsyncSession, run: Run, **values: Any) -> bool:
    written = await session.execute(
        update(Run)
        .where(Run.id == run.id, Run.attempt == run.attempt, Run.status == RunStatus.RUNNING)
        .values(**values)
        .returning(Run.id)
    )
    return written.one_or_none() is not None


async def is_deleted(database: Database, run: Run) -> bool:
    async with database.tenant(run.tenant_id) as session:
        return await session.get(Run, run.id) is None


@dataclass(frozen=True)
class Ending:
    """How a run ended; `text` is the message's, None where the agent said and drew nothing."""

    status: RunStatus
    text: str | None
    last_seq: int
    usage: dict[str, int]
    model: str
    error: RunError | None = None


@retry_while_unavailable
async def end(database: Database, run: Run, ending: Ending) -> Run | None:
    """Message, usage and status in one transaction; None where another attempt holds the run."""
    finished_at = now()
    async with database.tenant(run.tenant_id) as session:
        held = await _write(
            session,
            run,
            status=ending.status,
            finished_at=finished_at,
            last_seq=ending.last_seq,
            usage=ending.usage,
            error=ending.error,
            lease_until=None,
        )
        if not held:
            return None
        if ending.text is not None:
            session.add(new_message(run, ending.text, finished_at))
        session.add_all(_usage_entries(run, ending))
        await session.flush()
        return await session.get(Run, run.id, populate_existing=True)


def new_message(run: Run, text: str, created_at: datetime) -> Message:
    return Message(
        id=run.output_message_id,
        tenant_id=run.tenant_id,
        conversation_id=run.conversation_id,
        run_id=run.id,
        role=MessageRole.ASSISTANT,
        text=text,
        created_at=created_at,
    )


def _usage_entries(run: Run, ending: Ending) -> list[UsageEntry]:
    return [
        UsageEntry(
            tenant_id=run.tenant_id,
            user_id=run.user_id,
            run_id=run.id,
            model=ending.model,
            kind=kind,
            quantity=quantity,
        )
        for kind, quantity in ending.usage.items()
        if quantity
    ]
