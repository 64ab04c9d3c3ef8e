"""Stopping runs: one for its user, or many at once, because they are about to be deleted."""

from functools import partial

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import metrics
from app.broker import Broker
from app.conversations.models import Conversation
from app.conversations.service import new_answer
from app.db import after_commit, now
from app.event_log import Record
from app.inserts import insert_together
from app.logs import tagged
from app.runs.events import MessageCompleted, MessageStarted, RunCancelled, RunCreated, to_record
from app.runs.models import OPEN, Run, RunStatus
from app.runs.run_log import log_end
from app.runs.schemas import RunView

EVENTS_OF_UNSTARTED = 4
"""How many events a run has that is stopped while it is queued."""


async def stop(session: AsyncSession, broker: Broker, *conditions: ColumnElement[bool]) -> bool:
    """End the queued runs that meet the conditions, for good, and signal the workers of the others.

    Whether any is open still. Nobody is told of those that were queued: they are about to be deleted.
    """
    open_runs = (await session.execute(select(Run.id, Run.status).where(Run.status.in_(OPEN), *conditions))).all()
    if not open_runs:
        return False
    ids, stopped = [run.id for run in open_runs], {"cancel_requested_at": now()}
    queued = await session.scalars(
        update(Run)
        .where(Run.id.in_(ids), Run.status == RunStatus.QUEUED)
        .values(status=RunStatus.CANCELLED, finished_at=now(), **stopped)
        .returning(Run.agent_key)
    )
    for agent_key in queued:
        metrics.run_ended(agent_key, RunStatus.CANCELLED)
    running = await session.scalars(
        update(Run).where(Run.id.in_(ids), Run.status == RunStatus.RUNNING).values(**stopped).returning(Run.id)
    )
    for run_id in (signalled := running.all()):
        after_commit(session, partial(broker.events.signal, run_id))
    return bool(signalled)


async def stop_one(session: AsyncSession, broker: Broker, run: Run) -> None:
    """End a run that is queued, and tell its followers; signal the worker of one that is executed."""
    created = RunCreated(run=RunView.model_validate(run))
    if run.status == RunStatus.QUEUED:
        # Its message will refer to the conversation: whoever deletes that locks it before its runs.
        await session.execute(
            select(Conversation.id).where(Conversation.id == run.conversation_id).with_for_update(key_share=True)
        )
    queued = await session.scalars(
        update(Run)
        .where(Run.id == run.id, Run.status == RunStatus.QUEUED)
        .values(status=RunStatus.CANCELLED, cancel_requested_at=now(), finished_at=now(), last_seq=EVENTS_OF_UNSTARTED)
        .returning(Run)
    )
    if ended := queued.one_or_none():
        metrics.run_ended(ended.agent_key, ended.status)
        answer = new_answer(ended, "")
        await insert_together(session, answer)
        # With run.created: the API process may not have written it yet, and it could not be added after run.cancelled.
        events = (
            created,
            MessageStarted(message_id=answer.id),
            MessageCompleted.of(answer, [], ended),
            RunCancelled(run=RunView.model_validate(ended)),
        )
        records = [to_record(event, run.id, seq) for seq, event in enumerate(events, 1)]
        after_commit(session, partial(_tell_end, broker, ended, records))
        return
    await session.execute(
        update(Run).where(Run.id == run.id, Run.status == RunStatus.RUNNING).values(cancel_requested_at=now())
    )
    after_commit(session, lambda: broker.events.signal(run.id))


async def _tell_end(broker: Broker, run: Run, records: list[Record]) -> None:
    with tagged(run_id=run.id, run_request_id=run.options.request_id):
        log_end(run)
    await broker.events.append(run.id, records)
