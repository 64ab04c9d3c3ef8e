"""A run's life in the database: created, claimed, ended; every worker's write is fenced by its attempt."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.agents._shared.registry import Registry
from app.broker import Broker
from app.conversations import service as conversations
from app.conversations.models import Conversation, Message
from app.db import Database, after_commit, now, patient, uuid7
from app.errors import Conflict, NotFound
from app.identity.service import Actor
from app.runs.checks import check_options, check_pictures
from app.runs.log import record
from app.runs.models import Run, RunStatus
from app.runs.schemas import IfBusy, NewRun, RunView
from app.settings import Settings
from app.usage.models import UsageEntry

DEFAULT_AGENT = "assistant"
OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)


@dataclass(frozen=True)
class RunError:
    """What a failed run tells: a stable code, a sentence, whether asking again may help."""

    code: str
    message: str
    retryable: bool

    def as_dict(self) -> dict[str, Any]:
        # The message may quote the provider; Postgres keeps this one character out.
        return {"code": self.code, "message": self.message.replace("\0", ""), "retryable": self.retryable}


async def create(
    session: AsyncSession, broker: Broker, settings: Settings, registry: Registry, actor: Actor, asked: NewRun
) -> Run:
    """The run, its user message and, where none was named, a new conversation."""
    conversation = None
    if asked.conversation_id is not None:
        conversation = await conversations.get(session, actor, asked.conversation_id, lock=True)
        await _make_way(session, broker, conversation.id, asked.if_busy)
    agent_key = asked.agent_key or (conversation.agent_key if conversation else DEFAULT_AGENT)
    check_options(settings, registry, agent_key, asked)
    await check_pictures(session, actor, asked)
    if conversation is None:
        conversation = await conversations.open_new(session, actor, agent_key=agent_key, first_input=asked.input)
    return await _insert(session, actor, conversation, agent_key, asked)


async def _make_way(session: AsyncSession, broker: Broker, conversation_id: UUID, if_busy: IfBusy) -> None:
    found = await session.scalars(
        select(Run).where(Run.conversation_id == conversation_id, Run.status.in_(OPEN)).order_by(Run.id)
    )
    open_runs = found.all()
    if open_runs and if_busy == "reject":
        raise Conflict(
            "A run of this conversation is not finished: wait for it, stop it with PUT /v1/runs/{id}/cancellation, "
            'or send "if_busy": "queue" or "interrupt".',
            code="conversation_busy",
            run_id=str(open_runs[0].id),
        )
    if if_busy == "interrupt":
        for run in open_runs:
            await _cancel(session, broker, run)


async def _insert(
    session: AsyncSession, actor: Actor, conversation: Conversation, agent_key: str, asked: NewRun
) -> Run:
    run_id = uuid7()
    message = Message(
        tenant_id=actor.tenant_id,
        conversation_id=conversation.id,
        run_id=run_id,
        role="user",
        text=asked.input,
        input_ids=asked.attachments,
    )
    session.add(message)
    await session.flush()
    run = Run(
        id=run_id,
        tenant_id=actor.tenant_id,
        conversation_id=conversation.id,
        user_id=actor.user_id,
        agent_key=agent_key,
        options=_options(asked),
        input_message_id=message.id,
        output_message_id=uuid7(),
    )
    session.add(run)
    conversation.updated_at = now()
    await session.flush()
    return run


def _options(asked: NewRun) -> dict[str, Any]:
    """What the worker needs of the request; who names a picture to edit, or a part of one, wants that one edited."""
    forced, image = asked.forced_tool, asked.image
    if asked.edit is not None or asked.mask is not None:
        forced = asked.forced_tool or ("image_generation" if asked.tool_choice is None else None)
        image = {"action": "edit", **image}
    named = {"edit": str(asked.edit) if asked.edit else None, "mask": str(asked.mask) if asked.mask else None}
    return {"image": image, "tool_choice": forced, **named}


async def get(session: AsyncSession, actor: Actor, run_id: UUID) -> Run:
    run = await session.scalar(select(Run).where(Run.id == run_id, Run.user_id == actor.user_id))
    if run is None:
        raise NotFound("run")
    return run


async def claim(
    database: Database, tenant_id: UUID, run_id: UUID, *, lease_seconds: float, lost_attempt: int | None = None
) -> Run | None:
    """Take a queued run for this worker, or one whose `lost_attempt` has let its lease run out.

    None where another has it, it has ended, or a run before it in the conversation is still open. A worker renews its
    lease every third of `lease_seconds`; past it the run is taken for abandoned.
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


async def is_deleted(database: Database, run: Run) -> bool:
    async with database.tenant(run.tenant_id) as session:
        return await session.get(Run, run.id) is None


async def hand_over(database: Database, run: Run) -> None:
    """Let another worker take the run at once."""
    await write(database, run, lease_until=now())


async def next_queued(database: Database, tenant_id: UUID, run_id: UUID) -> UUID | None:
    """The run that waits for this one to end."""
    async with database.tenant(tenant_id) as session:
        ended = await session.get_one(Run, run_id)
        return await session.scalar(
            select(Run.id)
            .where(Run.conversation_id == ended.conversation_id, Run.status == RunStatus.QUEUED, Run.id > run_id)
            .order_by(Run.id)
            .limit(1)
        )


@patient
async def write(database: Database, run: Run, **values: Any) -> bool:
    """Change a run that this worker still holds; False where the lease went to another attempt."""
    async with database.tenant(run.tenant_id) as session:
        return await fenced(session, run, **values)


async def fenced(session: AsyncSession, run: Run, **values: Any) -> bool:
    written = await session.execute(
        update(Run)
        .where(Run.id == run.id, Run.attempt == run.attempt, Run.status == RunStatus.RUNNING)
        .values(**values)
        .returning(Run.id)
    )
    return written.one_or_none() is not None


@dataclass(frozen=True)
class Ending:
    """How a run ended: what it said, what it used, and for failures why."""

    status: RunStatus
    text: str
    says_something: bool
    last_seq: int
    usage: dict[str, int]
    model: str
    error: RunError | None = None


@patient
async def end(database: Database, run: Run, ending: Ending) -> Run | None:
    """Message, usage and status in one transaction; None where another attempt holds the run."""
    finished_at = now()
    async with database.tenant(run.tenant_id) as session:
        held = await fenced(
            session,
            run,
            status=ending.status,
            finished_at=finished_at,
            last_seq=ending.last_seq,
            usage=ending.usage,
            error=ending.error.as_dict() if ending.error else None,
            lease_until=None,
        )
        if not held:
            return None
        if ending.says_something:
            session.add(_answer(run, ending.text, finished_at))
        session.add_all(_ledger(run, ending))
        await session.flush()
        return await session.get(Run, run.id, populate_existing=True)


def _answer(run: Run, text: str, created_at: datetime) -> Message:
    return Message(
        id=run.output_message_id,
        tenant_id=run.tenant_id,
        conversation_id=run.conversation_id,
        run_id=run.id,
        role="assistant",
        text=text,
        created_at=created_at,
    )


def _ledger(run: Run, ending: Ending) -> list[UsageEntry]:
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


async def cancel(session: AsyncSession, broker: Broker, actor: Actor, run_id: UUID) -> Run:
    """End a run that waits; tell the worker of one that does not. An ended run stays as it is."""
    run = await get(session, actor, run_id)
    await _cancel(session, broker, run)
    await session.refresh(run)
    return run


async def _cancel(session: AsyncSession, broker: Broker, run: Run) -> None:
    created = record(run.id, 1, "run.created", {"run": RunView.model_validate(run).model_dump(mode="json")})
    waiting = await session.scalars(
        update(Run)
        .where(Run.id == run.id, Run.status == RunStatus.QUEUED)
        # Its events are `run.created` and its end.
        .values(status=RunStatus.CANCELLED, cancel_requested_at=now(), finished_at=now(), last_seq=2)
        .returning(Run)
    )
    if ended := waiting.one_or_none():
        end_record = record(run.id, 2, "run.cancelled", {"run": RunView.model_validate(ended).model_dump(mode="json")})
        # With the first, which may be on its way yet from another process: it could not be written after the second.
        after_commit(session, lambda: broker.append(run.id, [created, end_record]))
        return
    await session.execute(
        update(Run).where(Run.id == run.id, Run.status == RunStatus.RUNNING).values(cancel_requested_at=now())
    )
    after_commit(session, lambda: broker.signal(run.id))


async def last_completed(session: AsyncSession, run: Run) -> Run | None:
    """The conversation's last completed run before this one that the provider named a response of."""
    return await session.scalar(
        select(Run)
        .where(Run.conversation_id == run.conversation_id, Run.status == RunStatus.COMPLETED)
        .where(Run.id < run.id, Run.response_id.is_not(None))
        .order_by(Run.id.desc())
        .limit(1)
    )
