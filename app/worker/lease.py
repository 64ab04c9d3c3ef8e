"""A worker's lease of a run: claimed by compare-and-set, renewed, released; each write depends on the attempt.

Leases go by Postgres' clock: a worker whose own is wrong neither loses its runs nor takes over living ones.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Update, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.conversations.models import Conversation, Message, MessageRole
from app.db import Database, now, retry_while_unavailable
from app.inserts import insert_where
from app.runs import service as runs
from app.runs.models import OPEN, Run, RunError, RunStatus
from app.usage.models import UsageEntry

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another attempt holds the run: this one must write nothing more."""


async def claim(
    session: AsyncSession, run_id: UUID, *, lease_seconds: float, lost_attempt: int | None = None
) -> Run | None:
    """Claim a queued run for this worker, or one whose `lost_attempt` has let its lease expire.

    None where another worker has it, it has ended, or an earlier run of the conversation is still open. A worker renews
    its lease every third of `lease_seconds`; after that time the run counts as abandoned.
    """
    values: dict[str, Any] = {"attempt": Run.attempt + 1, "lease_until": _lease_end(lease_seconds)}
    before = aliased(Run)
    if lost_attempt is None:
        values |= {"status": RunStatus.RUNNING, "started_at": now()}
        earlier = select(before.id).where(
            before.conversation_id == Run.conversation_id, before.id < Run.id, before.status.in_(OPEN)
        )
        free = (Run.status == RunStatus.QUEUED, ~earlier.exists())
    else:
        free = (Run.status == RunStatus.RUNNING, Run.attempt == lost_attempt, Run.lease_until <= func.now())
    claimed = await session.scalars(update(Run).where(Run.id == run_id, *free).values(values).returning(Run))
    return claimed.one_or_none()


def _lease_end(lease_seconds: float) -> ColumnElement[datetime]:
    return func.clock_timestamp() + timedelta(seconds=lease_seconds)


async def keep_renewing(database: Database, run: Run, lease_seconds: float) -> None:
    """Return once another attempt holds the run."""
    while True:
        await asyncio.sleep(lease_seconds / 3)
        try:
            if not await write(database, run, lease_until=_lease_end(lease_seconds)):
                return
        except Exception:
            log.warning("run.renewal_failed", exc_info=True)


async def release(database: Database, run: Run) -> None:
    """Let another worker claim the run at once."""
    await write(database, run, lease_until=func.now())


@retry_while_unavailable
async def write(database: Database, run: Run, **values: Any) -> bool:
    """Change a run that this worker holds; False where another attempt holds it."""
    async with database.tenant(run.tenant_id) as session:
        written = await session.execute(_update_held(run).values(**values).returning(Run.id))
        return written.one_or_none() is not None


def _update_held(run: Run) -> Update:
    """Changes nothing where another attempt holds the run."""
    return update(Run).where(Run.id == run.id, Run.attempt == run.attempt, Run.status == RunStatus.RUNNING)


async def is_deleted(database: Database, run: Run) -> bool:
    async with database.tenant(run.tenant_id) as session:
        return await session.get(Run, run.id) is None


@dataclass(frozen=True)
class Ending:
    """How a run ended; `text` is the message's, None where the agent said and drew nothing.

    `response_id` is the provider's last response, None where it named none.
    """

    status: RunStatus
    text: str | None
    last_seq: int
    usage: dict[str, int]
    model: str
    response_id: str | None
    error: RunError | None = None
    unrecorded_images: Sequence[str] = ()


@dataclass(frozen=True)
class Ended:
    """The run as it is now, and the run of its conversation that waited for its end."""

    run: Run
    waiting: UUID | None


async def end(session: AsyncSession, run: Run, ending: Ending) -> Ended | None:
    """Message, usage and status; None where another attempt holds the run."""
    ended = await session.scalar(_ending_statement(run, ending, now()))
    if ended is None:
        return None
    # A statement of its own, so that it sees the run that an API process added before this one got the lock.
    return Ended(ended, await runs.next_queued(session, ended))


def _ending_statement(run: Run, ending: Ending, finished_at: datetime) -> Select[Run]:
    """Four writes in one round trip; those of message and usage happen only where the run is still held.

    The lock on the conversation keeps a new run from being added, and from finding this one open, between the look for
    a waiting run and the commit.
    """
    conversation = select(Conversation.id).where(Conversation.id == run.conversation_id)
    locked = conversation.with_for_update(key_share=True).cte("locked")
    values = {
        "status": ending.status,
        "finished_at": finished_at,
        "last_seq": ending.last_seq,
        "usage": ending.usage,
        "response_id": ending.response_id,
        "error": ending.error,
        "unrecorded_images": list(ending.unrecorded_images),
        "lease_until": None,
    }
    held = _update_held(run).where(Run.conversation_id == locked.c.id)
    ended = held.values(values).returning(Run).cte("ended")
    statement = select(aliased(Run, ended))
    if ending.text is not None:
        message = new_message(run, ending.text, finished_at)
        statement = statement.add_cte(insert_where(message, ended).cte("message"))
    for entry in _usage_entries(run, ending):
        statement = statement.add_cte(insert_where(entry, ended).cte(entry.kind))
    return statement


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
