"""A run that this worker holds: each change of it is one statement, together with what is booked beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Integer,
    Interval,
    Update,
    Uuid,
    bindparam,
    case,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.compiled import CompiledStatement
from app.conversations.models import Conversation, ImagePlaces, Message
from app.conversations.service import new_answer
from app.db import Database, now, retry_while_unavailable
from app.inserts import insert_where, names_of, values_of
from app.runs.models import Run, RunError, RunStatus
from app.usage.ledger import Cost, awaits_settlement
from app.worker.booking import Booking, Parts
from app.worker.reservation import Less, enlarge


@dataclass(frozen=True)
class FromNow:
    """Of a column: so much later than Postgres' clock."""

    amount: timedelta


@retry_while_unavailable
async def write(database: Database, run: Run, booking: Booking | None = None, **values: Any) -> bool:
    """Change a run that this worker holds; False where another attempt holds it, or the run is gone.

    What the provider has kept for it is recorded in any case. Raises OverLimit where the plan refuses what it needs.
    """
    booking = booking or Booking()
    statement = _writing(_columns_of(values), booking.parts)
    given = {**_values_of_held(run, values), **booking.values(run)}
    async with database.tenant(run.tenant_id) as session:
        is_held = (await statement.execute(session, given)).scalar() is not None
        if is_held and booking.need is not None:
            await enlarge(session, run, booking.need)
        return is_held


Columns = tuple[tuple[str, type[Less | FromNow] | None], ...]
"""Of a run, that are changed: by their names, and how; None is to a value."""


def _columns_of(values: Mapping[str, Any]) -> Columns:
    return tuple((name, type(value) if isinstance(value, Less | FromNow) else None) for name, value in values.items())


@cache
def _writing(columns: Columns, parts: Parts) -> CompiledStatement[UUID]:
    # Whoever deletes a conversation locks it, its images, its runs in this order.
    updated = _update_held(columns, locks_conversation=parts.charges_images)
    held = updated.returning(Run.id).cte("held")
    return CompiledStatement(select(held.c.id).add_cte(*parts.statements(held)))


def _update_held(columns: Columns, *, locks_conversation: bool) -> Update:
    """Changes nothing where another attempt holds the run; takes `_values_of_held`."""
    held = update(Run).where(
        Run.id == bindparam("held_run", type_=Uuid),
        Run.attempt == bindparam("held_attempt", type_=Integer),
        Run.status == RunStatus.RUNNING,
    )
    held = held.values({name: _changed(name, how) for name, how in columns})
    conversation = Conversation.id == bindparam("held_conversation", type_=Uuid)
    locked = select(Conversation.id).where(conversation).with_for_update(key_share=True)
    return held.where(Run.conversation_id == locked.cte("locked").c.id) if locks_conversation else held


def _changed(name: str, how: type[Less | FromNow] | None) -> ColumnElement[Any]:
    column = Run.__table__.columns[name]
    if how is FromNow:
        return func.clock_timestamp() + bindparam(f"held_new_{name}", type_=Interval)
    given = bindparam(f"held_new_{name}", type_=column.type)
    # Once: what is written may be written again, where the answer to its commit was lost.
    return case((awaits_settlement(), func.greatest(column - given, 0)), else_=column) if how is Less else given


def _values_of_held(run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"held_run": run.id, "held_attempt": run.attempt, "held_conversation": run.conversation_id}
    for name, value in values.items():
        found[f"held_new_{name}"] = value.amount if isinstance(value, Less | FromNow) else value
    return found


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
    """The run as it is now, its message, and whether runs of its tenant wait.

    `repeated`: all of it had been written, and the answer to that commit was lost.
    """

    run: Run
    message: Message
    waiting: bool
    repeated: bool


async def end(session: AsyncSession, run: Run, ending: Ending) -> Ended | None:
    """Message, usage and status; None where another attempt holds the run."""
    values = _values_of_end(ending, now())
    message = new_answer(run, ending.text, ending.image_places)
    message.created_at = values["finished_at"]
    statement = _ending(_columns_of(values), names_of(message), ending.booking.parts)
    given = {**_values_of_held(run, values), **values_of(message), **ending.booking.values(run)}
    ended = (await statement.execute(session, given)).scalar()
    if repeated := ended is None:
        of_it = {"of_run": run.id, "of_attempt": run.attempt, "of_status": ending.status, "new_seq": ending.last_seq}
        ended = (await _WRITTEN.execute(session, of_it)).scalar()
    if ended is None:
        return None
    # A statement of its own, so that it sees the run that an API process added before this one got the lock.
    waiting = (await _WAITING.execute(session, {"tenant": run.tenant_id})).scalar()
    return Ended(ended, new_answer(ended, ending.text, ending.image_places), bool(waiting), repeated)


# Nobody but the attempt itself ends a run as this attempt; it may have emitted one more event since.
_WRITTEN = CompiledStatement[Run](
    update(Run)
    .where(
        Run.id == bindparam("of_run", type_=Uuid),
        Run.attempt == bindparam("of_attempt", type_=Integer),
        Run.status == bindparam("of_status", type_=Run.__table__.c.status.type),
    )
    .values(last_seq=bindparam("new_seq", type_=Integer))
    .returning(Run),
    Run,
)
_WAITING = CompiledStatement[bool](
    select(exists().where(Run.tenant_id == bindparam("tenant", type_=Uuid), Run.status == RunStatus.QUEUED))
)


@cache
def _ending(columns: Columns, of_message: tuple[str, ...], parts: Parts) -> CompiledStatement[Run]:
    """All writes in one round trip; those of message and usage happen only where the run is still held.

    The lock on the conversation keeps a new run from being added, and from finding this one open, between the look for
    waiting runs and the commit.
    """
    ended = _update_held(columns, locks_conversation=True).returning(Run).cte("ended")
    message = insert_where(Message, of_message, ended).cte("message")
    return CompiledStatement(select(aliased(Run, ended)).add_cte(message, *parts.statements(ended)), Run)


def _values_of_end(ending: Ending, finished_at: datetime) -> dict[str, Any]:
    return {
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
