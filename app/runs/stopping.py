"""Stopping many runs at once, because they are about to be deleted."""

from functools import partial

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.broker import Broker
from app.db import after_commit, now
from app.runs.models import OPEN, Run, RunStatus


async def stop(session: AsyncSession, broker: Broker, *conditions: ColumnElement[bool]) -> bool:
    """End the queued runs that meet the conditions, for good, and signal the workers of the others.

    Whether any is open still. Nobody is told of those that were queued: they are about to be deleted.
    """
    open_runs = (await session.execute(select(Run.id, Run.status).where(Run.status.in_(OPEN), *conditions))).all()
    if not open_runs:
        return False
    ids, stopped = [run.id for run in open_runs], {"cancel_requested_at": now()}
    await session.execute(
        update(Run)
        .where(Run.id.in_(ids), Run.status == RunStatus.QUEUED)
        .values(status=RunStatus.CANCELLED, finished_at=now(), **stopped)
    )
    running = await session.scalars(
        update(Run).where(Run.id.in_(ids), Run.status == RunStatus.RUNNING).values(**stopped).returning(Run.id)
    )
    for run_id in (signalled := running.all()):
        after_commit(session, partial(broker.events.signal, run_id))
    return bool(signalled)
