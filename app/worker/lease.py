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

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Integer,
    Interval,
    Select,
    Update,
    Uuid,
    bindparam,
    exists,
    func,
    select,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate

from app.conversations.models import Conversation, ImagePlaces, Message
from app.conversations.service import new_answer
from app.db import Database, now, retry_while_unavailable
from app.inserts import insert_where
from app.runs.models import OPEN, Run, RunError, RunStatus
from app.usage.ledger import Cost
from app.worker.booking import Booking
from app.worker.reservation import enlarge

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another attempt holds the run: this one must write nothing more."""


@dataclass(frozen=True)
class Claimed:
    """`more` says that the tenant has further runs to claim, unless its limit or their conversations forbid it."""

    run: Run
    more: bool


async def claim(session: AsyncSession, tenant_id: UUID, *, most: int, lease_seconds: float) -> Claimed | None:
    """Claim for this worker the tenant's oldest run whose lease has expired, or else the oldest that may start.

    None where there is none: a run waits while an earlier one of its conversation is open, or while `most` of the
    tenant are running. A worker renews its lease every third of `lease_seconds`; after that time the run counts as
    abandoned.
    """
    given = {"tenant": tenant_id, "most": most, "started": now(), "lease": timedelta(seconds=lease_seconds)}
    found = (await session.execute(_CLAIM, given)).one_or_none()
    return Claimed(*found) if found else None


def _is_queued(run: type[Run]) -> ColumnElement[bool]:
    return run.status == RunStatus.QUEUED


def _is_abandoned(run: type[Run]) -> ColumnElement[bool]:
    return (run.status == RunStatus.RUNNING) & (run.lease_until <= func.now())


def _claim_statement() -> ReturningUpdate[Run, bool]:
    run, before, running, other = aliased(Run), aliased(Run), aliased(Run), aliased(Run)
    tenant = bindparam("tenant", type_=Uuid)
    earlier = exists().where(
        before.tenant_id == tenant,
        before.conversation_id == run.conversation_id,
        before.id < run.id,
        before.status.in_(OPEN),
    )
    count = select(func.count()).where(running.tenant_id == tenant, running.status == RunStatus.RUNNING)
    # A row that another worker is just claiming is skipped, and one that it has claimed meanwhile is left out. One that
    # a reader's new stream refers to is not: nobody would look for it again soon.
    oldest = select(run.id).where(run.tenant_id == tenant).order_by(run.id).limit(1)
    oldest = oldest.with_for_update(key_share=True, skip_locked=True)
    abandoned = oldest.where(_is_abandoned(run))
    startable = oldest.where(_is_queued(run), ~earlier, count.scalar_subquery() < bindparam("most", type_=Integer))
    # COALESCE is not leakproof: under row security Postgres would read all runs for it.
    found = union_all(*(one.subquery().select() for one in (abandoned, startable))).limit(1)
    more = exists().where(other.tenant_id == tenant, other.id != Run.id, _is_queued(other) | _is_abandoned(other))
    return (
        update(Run)
        .where(Run.id == found.scalar_subquery())
        .values(
            status=RunStatus.RUNNING,
            attempt=Run.attempt + 1,
            started_at=func.coalesce(Run.started_at, bindparam("started", type_=DateTime(timezone=True))),
            lease_until=func.clock_timestamp() + bindparam("lease", type_=Interval),
        )
        .returning(Run, more)
    )


# Built once: that takes longer than to execute it.
_CLAIM = _claim_statement()


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


async def release(database: Database, run: Run, booking: Booking | None = None) -> None:
    """Let another worker claim the run at once."""
    await write(database, run, booking, lease_until=func.now())


@retry_while_unavailable
async def write(database: Database, run: Run, booking: Booking | None = None, **values: Any) -> bool:
    """Change a run that this worker holds; False where another attempt holds it, or the run is gone.

    What the provider has kept for it is recorded in any case. Raises OverLimit where the plan refuses what it needs.
    """
    # Whoever deletes a conversation locks it, its images, its runs in this order.
    updated = _update_held(run, locks_conversation=bool(booking and booking.charges_images))
    held = updated.values(**values).returning(Run.id).cte("held")
    statement = select(held.c.id).add_cte(*booking.statements(run, held) if booking else ())
    async with database.tenant(run.tenant_id) as session:
        is_held = await session.scalar(statement) is not None
        if is_held and booking is not None and booking.need is not None:
            await enlarge(session, run, booking.need)
        return is_held


def _update_held(run: Run, *, locks_conversation: bool = False) -> Update:
    """Changes nothing where another attempt holds the run."""
    held = update(Run).where(Run.id == run.id, Run.attempt == run.attempt, Run.status == RunStatus.RUNNING)
    locked = select(Conversation.id).where(Conversation.id == run.conversation_id).with_for_update(key_share=True)
    return held.where(Run.conversation_id == locked.cte("locked").c.id) if locks_conversation else held


async def is_deleted(database: Database, run: Run) -> bool:
    async with database.tenant(run.tenant_id) as session:
        return await session.get(Run, run.id) is None


@dataclass(frozen=True)
class Ending:
    """How a run ended, and its message: the text, and where its images come in it.

    `response_id` is the provider's last response, None where it named none; `cost` is that of all calls.
    """

    status: RunStatus
    text: str
    image_places: ImagePlaces
    last_seq: int
    usage: dict[str, int]
    cost: Cost
    response_id: str | None
    booking: Booking
    error: RunError | None = None
    unrecorded_images: Sequence[str] = ()


@dataclass(frozen=True)
class Ended:
    """The run as it is now, its message, and whether runs of its tenant wait."""

    run: Run
    message: Message
    waiting: bool


async def end(session: AsyncSession, run: Run, ending: Ending) -> Ended | None:
    """Message, usage and status; None where another attempt holds the run."""
    ended = await session.scalar(_ending_statement(run, ending, now()))
    if ended is None:
        return None
    # A statement of its own, so that it sees the run that an API process added before this one got the lock.
    waiting = await session.scalar(select(exists().where(Run.tenant_id == run.tenant_id, _is_queued(Run))))
    return Ended(ended, new_answer(ended, ending.text, ending.image_places), bool(waiting))


def _ending_statement(run: Run, ending: Ending, finished_at: datetime) -> Select[Run]:
    """All writes in one round trip; those of message and usage happen only where the run is still held.

    The lock on the conversation keeps a new run from being added, and from finding this one open, between the look for
    waiting runs and the commit.
    """
    values = {
        "status": ending.status,
        "finished_at": finished_at,
        "last_seq": ending.last_seq,
        "usage": ending.usage,
        "booked_nano": ending.cost.nano,
        "booked_basis": ending.cost.basis,
        "response_id": ending.response_id,
        "error": ending.error,
        "unrecorded_images": list(ending.unrecorded_images),
        "lease_until": None,
    }
    ended = _update_held(run, locks_conversation=True).values(values).returning(Run).cte("ended")
    message = new_answer(run, ending.text, ending.image_places)
    message.created_at = finished_at
    inserted = insert_where(message, ended).cte("message")
    return select(aliased(Run, ended)).add_cte(inserted, *ending.booking.statements(run, ended))
