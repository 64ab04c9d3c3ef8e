"""A worker's lease of a run: claimed by compare-and-set, renewed, released; each write depends on the attempt.

Leases go by Postgres' clock: a worker whose own is wrong neither loses its runs nor takes over living ones.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Integer,
    Interval,
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

from app.compiled import CompiledStatement
from app.db import Database, now
from app.runs.models import OPEN, Run, RunStatus
from app.worker import held_run
from app.worker.booking import Booking

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
    found = (await _CLAIM.execute(session, given)).one_or_none()
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


_CLAIM = CompiledStatement(_claim_statement(), Run, None)


async def keep_renewing(database: Database, run: Run, lease_seconds: float) -> None:
    """Return once another attempt holds the run."""
    while True:
        await asyncio.sleep(lease_seconds / 3)
        try:
            if not await held_run.write(database, run, lease_until=held_run.FromNow(timedelta(seconds=lease_seconds))):
                return
        except Exception:
            log.warning("run.renewal_failed", exc_info=True)


async def release(database: Database, run: Run, booking: Booking | None = None, **values: Any) -> None:
    """Let another worker claim the run at once."""
    await held_run.write(database, run, booking, lease_until=held_run.FromNow(timedelta()), **values)


async def look(database: Database, run: Run) -> Run | None:
    """The run as it is now, whoever holds it; None where it was deleted."""
    async with database.tenant(run.tenant_id) as session:
        return await session.get(Run, run.id)
