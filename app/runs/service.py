"""A run's life in the database: created, claimed, ended; every worker's write is fenced by its attempt."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.agents._shared.registry import Registry, check_tool_choice, image_options
from app.conversations import service as conversations
from app.conversations.models import Conversation, Message
from app.db import Database, now, uuid7
from app.errors import Conflict, Invalid, NotFound
from app.identity.service import Actor
from app.images.options import OptionError
from app.runs.models import Run, RunStatus
from app.runs.schemas import NewRun
from app.settings import Settings
from app.usage.models import UsageEntry

DEFAULT_AGENT = "assistant"
# A worker renews its lease every third of this; past it the run is taken for abandoned.
LEASE = timedelta(seconds=30)


def lease_end() -> datetime:
    return now() + LEASE


@dataclass(frozen=True)
class RunError:
    """What a failed run tells: a stable code, a sentence, whether asking again may help."""

    code: str
    message: str
    retryable: bool

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "retryable": self.retryable}


async def create(session: AsyncSession, settings: Settings, registry: Registry, actor: Actor, asked: NewRun) -> Run:
    """The run, its user message and, where none was named, a new conversation."""
    conversation = None
    if asked.conversation_id is not None:
        conversation = await conversations.get(session, actor, asked.conversation_id, lock=True)
        await _refuse_if_busy(session, conversation.id)
    agent_key = asked.agent_key or (conversation.agent_key if conversation else DEFAULT_AGENT)
    check_options(settings, registry, agent_key, asked)
    if conversation is None:
        conversation = await conversations.open_new(session, actor, agent_key=agent_key, first_input=asked.input)
    return await _insert(session, actor, conversation, agent_key, asked)


async def _refuse_if_busy(session: AsyncSession, conversation_id: UUID) -> None:
    open_run = await session.scalar(
        select(Run.id).where(
            Run.conversation_id == conversation_id, Run.status.in_([RunStatus.QUEUED, RunStatus.RUNNING])
        )
    )
    if open_run is not None:
        raise Conflict(
            "A run of this conversation is not finished: wait for it or stop it with PUT /v1/runs/{id}/cancellation.",
            code="conversation_busy",
            run_id=str(open_run),
        )


def check_options(settings: Settings, registry: Registry, agent_key: str, asked: NewRun) -> None:
    """Refuse what could not be done before anything is written or paid."""
    agent = registry.specs.get(agent_key)
    if agent is None:
        known = ", ".join(sorted(registry.specs))
        raise Invalid(
            f"There is no agent {agent_key!r}; there are {known}.",
            code="unknown_agent",
            errors=[{"field": "agent_key", "message": f"one of {known}", "given": repr(agent_key)[:100]}],
        )
    try:
        image_options(settings, agent, asked.image)
        if asked.forced_tool:
            check_tool_choice(agent, asked.forced_tool)
    except OptionError as error:
        field = error.field if error.field == "tool_choice" else f"image.{error.field}"
        raise Invalid(
            f"{field}: {error.given} is not possible; allowed: {error.allowed}.",
            code="invalid_option",
            errors=[{"field": field, "message": f"allowed: {error.allowed}", "given": error.given[:100]}],
        ) from None


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
    )
    session.add(message)
    await session.flush()
    run = Run(
        id=run_id,
        tenant_id=actor.tenant_id,
        conversation_id=conversation.id,
        user_id=actor.user_id,
        agent_key=agent_key,
        options={"image": asked.image, "tool_choice": asked.forced_tool},
        input_message_id=message.id,
        output_message_id=uuid7(),
    )
    session.add(run)
    conversation.updated_at = now()
    await session.flush()
    return run


async def get(session: AsyncSession, actor: Actor, run_id: UUID) -> Run:
    run = await session.scalar(select(Run).where(Run.id == run_id, Run.user_id == actor.user_id))
    if run is None:
        raise NotFound("run")
    return run


async def claim(database: Database, tenant_id: UUID, run_id: UUID) -> Run | None:
    """Take a queued run for this worker; None where another has it or it has ended."""
    async with database.tenant(tenant_id) as session:
        claimed = await session.scalars(
            update(Run)
            .where(Run.id == run_id, Run.status == RunStatus.QUEUED)
            .values(
                status=RunStatus.RUNNING,
                attempt=Run.attempt + 1,
                started_at=now(),
                lease_until=lease_end(),
            )
            .returning(Run)
        )
        return claimed.one_or_none()


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


async def end(database: Database, run: Run, ending: Ending) -> Run | None:
    """Message, usage and status in one transaction; None where another attempt holds the run."""
    async with database.tenant(run.tenant_id) as session:
        held = await fenced(
            session,
            run,
            status=ending.status,
            finished_at=now(),
            last_seq=ending.last_seq,
            usage=ending.usage,
            error=ending.error.as_dict() if ending.error else None,
            lease_until=None,
        )
        if not held:
            return None
        if ending.says_something:
            session.add(_answer(run, ending.text))
        session.add_all(_ledger(run, ending))
        await session.flush()
        return await session.get(Run, run.id, populate_existing=True)


def _answer(run: Run, text: str) -> Message:
    return Message(
        id=run.output_message_id,
        tenant_id=run.tenant_id,
        conversation_id=run.conversation_id,
        run_id=run.id,
        role="assistant",
        text=text,
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


async def ask_to_cancel(session: AsyncSession, actor: Actor, run_id: UUID) -> Run:
    """Mark the run; who executes it does the rest. A run that waits is cancelled here, an ended one stays as it is."""
    run = await get(session, actor, run_id)
    await session.execute(
        update(Run)
        .where(Run.id == run.id, Run.status.in_([RunStatus.QUEUED, RunStatus.RUNNING]))
        .values(cancel_requested_at=now())
    )
    await session.refresh(run)
    return run


async def last_completed(session: AsyncSession, run: Run) -> Run | None:
    """The conversation's last completed run before this one that the provider named a response of."""
    return await session.scalar(
        select(Run)
        .where(Run.conversation_id == run.conversation_id, Run.status == RunStatus.COMPLETED)
        .where(Run.id < run.id, Run.response_id.is_not(None))
        .order_by(Run.id.desc())
        .limit(1)
    )
