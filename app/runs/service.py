"""Starting, finding and cancelling runs: what the API does with them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Integer, Select, Uuid, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.broker import Broker
from app.compiled import CompiledStatement
from app.conversations import service as conversations
from app.conversations.models import Conversation, Message, MessageRole
from app.db import Base, after_commit, now, uuid7
from app.error_codes import ErrorCode
from app.errors import Conflict, LimitExceeded, NotFound
from app.identity.service import Actor
from app.identity.sharing import require_own, visible_to
from app.inserts import insert_together
from app.logs import tag
from app.request_context import current_request
from app.runs import idempotency
from app.runs.admission import Admission, Starting, admit
from app.runs.events import RunCreated, to_record
from app.runs.idempotency import Answer
from app.runs.models import OPEN, Run, RunStatus
from app.runs.schemas import DEFAULT_AGENT, IfBusy, NewRun, RunView
from app.runs.stopping import stop_one
from app.runs.streams import new_stream
from app.runs.validation import check_images, check_options
from app.settings import Settings
from app.usage import counters
from app.usage.models import Plan

QUEUE_RETRY_SECONDS = 5.0
START = "POST /v1/runs"
"""The scope of idempotency keys: the same for every way to start a run."""


async def start(starting: Starting, request: NewRun, idempotency_key: str | None) -> Answer:
    """Create the run; a worker hears of it after the commit. A repeated `idempotency_key` gives the first answer."""
    session, actor = starting.session, starting.actor
    if answer := await idempotency.recall(session, actor, START, idempotency_key, request):
        await counters.read_rate(session, actor)
        return answer
    rows, run = await _prepare(starting, request)
    view = RunView.model_validate(run)
    stream = new_stream(actor, run.id) if starting.follows else None
    headers = {"Location": f"/v1/runs/{view.id}", "X-Run-Id": str(view.id)}
    tag(run_id=run.id)
    answer = Answer(view.id, 202, headers, view.model_dump_json(), run, stream)
    if idempotency_key is not None:
        rows.append(idempotency.to_remember(actor, START, idempotency_key, request, answer))
    await insert_together(session, *rows, *filter(None, [stream]))
    after_commit(session, lambda: launch(starting.broker, actor.tenant_id, view))
    return answer


async def launch(broker: Broker, tenant_id: UUID, run: RunView) -> None:
    """After the commit: the first event, and the tenant is ready."""
    await broker.events.append(run.id, [to_record(RunCreated(run=run), run.id, 1)])
    await broker.ready.put(tenant_id)


async def _prepare(starting: Starting, request: NewRun) -> tuple[list[Base], Run]:
    """The run, and the rows to insert: it, its user message and, where none is named, a new conversation."""
    session, settings, actor = starting.session, starting.settings, starting.actor
    conversation = None
    if request.conversation_id is not None:
        conversation = await conversations.touch(session, actor, request.conversation_id)
    plan, waiting, open_runs = await _look_at_queues(starting, request.conversation_id)
    if open_runs:
        await _resolve_busy(session, starting.broker, settings, open_runs, request.if_busy)
    _check_room("tenant", settings.tenant_queued_runs, waiting)
    agent_key = request.agent_key or (conversation.agent_key if conversation else DEFAULT_AGENT)
    check_options(settings, starting.registry, agent_key, request)
    await check_images(session, actor, request)
    # Last, as nobody else of the tenant is admitted until this transaction ends.
    admission = await admit(starting, plan, starting.registry.specs[agent_key], request, conversation)
    rows: list[Base] = []
    if conversation is None:
        conversation = conversations.new(actor, agent_key=agent_key, first_input=request.input)
        rows.append(conversation)
    message, run = _new_rows(actor, conversation, agent_key, request, admission)
    return [*rows, message, run], run


def _queues() -> Select[Plan, datetime | None, datetime | None, datetime, int, Run]:
    tenant, conversation = bindparam("tenant", type_=Uuid), bindparam("conversation", type_=Uuid)
    # The tenant as a value, though row security names it as well: Postgres then knows how few runs it has.
    queued = select(Run.id).where(Run.tenant_id == tenant, Run.status == RunStatus.QUEUED)
    # In the order of their index, so that Postgres takes it: few of all queued runs may be this tenant's.
    limited = queued.order_by(Run.id).limit(bindparam("most", type_=Integer)).subquery()
    waiting = select(func.count()).select_from(limited).scalar_subquery()
    of_conversation = (Run.tenant_id == tenant) & (Run.conversation_id == conversation) & Run.status.in_(OPEN)
    return counters.PLAN_AND_RATE.add_columns(waiting, Run).outerjoin(Run, of_conversation).order_by(Run.id)


_QUEUES = CompiledStatement(_queues(), Plan, None, None, None, None, Run)


async def _look_at_queues(starting: Starting, conversation_id: UUID | None) -> tuple[Plan, int, list[Run]]:
    """The plan, how many runs of the tenant wait, counted to the limit, and the conversation's open runs: at once."""
    given: dict[str, Any] = {**counters.of_actor(starting.actor), "conversation": conversation_id}
    given["most"] = starting.settings.tenant_queued_runs
    rows = (await _QUEUES.execute(starting.session, given)).all()
    plan, of_tenant, of_user, at, count, _ = rows[0]
    counters.tell_rate(plan, of_tenant, of_user, at)
    return plan, count, [row.Run for row in rows if row.Run is not None]


async def _resolve_busy(
    session: AsyncSession, broker: Broker, settings: Settings, open_runs: Sequence[Run], if_busy: IfBusy
) -> None:
    if if_busy == "reject":
        raise Conflict(
            "A run of this conversation is not finished: wait for it, stop it with PUT /v1/runs/{id}/cancellation, "
            'or send "if_busy": "queue" or "interrupt".',
            code=ErrorCode.CONVERSATION_BUSY,
            run_id=str(open_runs[0].id),
        )
    if if_busy == "interrupt":
        for run in open_runs:
            await stop_one(session, broker, run)
        return
    queued = sum(run.status == RunStatus.QUEUED for run in open_runs)
    _check_room("conversation", settings.conversation_queued_runs, queued)


def _check_room(scope: Literal["conversation", "tenant"], allowed: int, queued: int) -> None:
    if queued >= allowed:
        whose = "this conversation" if scope == "conversation" else "your organisation"
        raise LimitExceeded(
            f"{allowed} runs of {whose} wait already: start the next one when some of them have begun.",
            limit="conversation_queued_runs" if scope == "conversation" else "tenant_queued_runs",
            scope=scope,
            allowed=allowed,
            retry_after=QUEUE_RETRY_SECONDS,
        )


def _new_rows(
    actor: Actor, conversation: Conversation, agent_key: str, request: NewRun, admission: Admission
) -> tuple[Message, Run]:
    message_id, run_id, origin = uuid7(), uuid7(), current_request()
    message = Message(
        id=message_id,
        tenant_id=actor.tenant_id,
        conversation_id=conversation.id,
        run_id=run_id,
        role=MessageRole.USER,
        text=request.input,
        input_ids=request.attachments,
    )
    run = Run(
        id=run_id,
        tenant_id=actor.tenant_id,
        conversation_id=conversation.id,
        user_id=actor.user_id,
        agent_key=agent_key,
        status=RunStatus.QUEUED,
        options=request.options.model_copy(update={"request_id": origin.request_id, "traceparent": origin.traceparent}),
        input_message_id=message_id,
        output_message_id=uuid7(),
        **vars(admission),
        created_at=now(),
    )
    return message, run


async def get(session: AsyncSession, actor: Actor, run_id: UUID) -> Run:
    """One that the actor may see."""
    visible = visible_to(actor.user_id, Run.user_id, Run.conversation_id)
    run = await session.scalar(select(Run).where(Run.id == run_id, visible))
    if run is None:
        raise NotFound("run")
    return run


async def listed(
    session: AsyncSession, actor: Actor, *, conversation_id: UUID | None, status: RunStatus | None
) -> Select[Run]:
    """The actor's own, or those of a conversation that they may read. Raises NotFound."""
    statement = select(Run).where(Run.user_id == actor.user_id)
    if conversation_id is not None:
        await conversations.get(session, actor, conversation_id)
        statement = select(Run).where(Run.conversation_id == conversation_id)
    return statement if status is None else statement.where(Run.status == status)


async def cancel(session: AsyncSession, broker: Broker, actor: Actor, run_id: UUID) -> Run:
    """End a queued run; signal the worker of a running one. An ended run stays as it is."""
    run = await get(session, actor, run_id)
    require_own(actor, run.user_id)
    await stop_one(session, broker, run)
    await session.refresh(run)
    return run
