"""One run from claim to terminal event."""

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import openai
from agents import ModelRefusalError, RunConfig, RunErrorHandlerInput, Runner, TResponseInputItem

from app.agents._shared.build import build_agent
from app.agents._shared.model import DivertingModel
from app.agents._shared.registry import LoadedAgent, image_options
from app.attachments import service as attachments
from app.attachments.schemas import log_form
from app.conversations import service as conversations
from app.conversations.models import Message
from app.logs import tagged
from app.runs import service
from app.runs.failures import TIMEOUT, explain
from app.runs.log import EventLog
from app.runs.models import Run, RunStatus
from app.runs.schemas import RunView
from app.runs.service import LEASE, Ending, RunError
from app.runs.translate import Translator
from app.runs.turn import LeaseLost, Turn, Workshop

log = logging.getLogger(__name__)

SIGNAL_WAIT_SECONDS = 15.0
WATCH_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    status: RunStatus
    error: RunError | None = None


async def execute(shop: Workshop, tenant_id: UUID, run_id: UUID) -> None:
    """Claim the run and see it to its end; returns at once where another worker has it."""
    run = await service.claim(shop.database, tenant_id, run_id)
    if run is None:
        return
    with tagged(tenant_id=tenant_id, run_id=run_id):
        await _carry_out(shop, run)


async def _carry_out(shop: Workshop, run: Run) -> None:
    events = EventLog(shop.fabric, run.id)
    view = RunView.model_validate(run)
    # The API wrote this one already, unless the fabric was away then: its number keeps it single.
    queued = view.model_copy(update={"status": RunStatus.QUEUED, "started_at": None})
    events.emit("run.created", run=queued.model_dump(mode="json"))
    events.emit("run.started", run=view.model_dump(mode="json"))
    turn = Turn(shop, run, events)
    translator = Translator(events.emit, message_id=str(run.output_message_id))
    try:
        outcome = await _supervise(shop, run, turn, translator)
        await turn.settle()
        await _finish(shop, run, events, turn, translator, outcome)
    except LeaseLost:
        log.warning("run.lease_lost")
    await events.flush()


async def _supervise(shop: Workshop, run: Run, turn: Turn, translator: Translator) -> Outcome:
    """Play the turn until it ends, is stopped, or takes too long; renew the lease meanwhile."""
    play = asyncio.create_task(_play(shop, run, turn, translator))
    stop = asyncio.create_task(_stopped(shop, run))
    lease = asyncio.create_task(_renew(shop, run))
    try:
        await asyncio.wait(
            {play, stop, lease},
            timeout=shop.settings.run_timeout_seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if play.done():
            return _outcome(play)
        if lease.done():
            raise LeaseLost
        return Outcome(RunStatus.CANCELLED) if stop.done() else Outcome(RunStatus.FAILED, TIMEOUT)
    finally:
        for task in (play, stop, lease):
            task.cancel()
        await asyncio.gather(play, stop, lease, return_exceptions=True)


def _outcome(play: asyncio.Task[None]) -> Outcome:
    error = play.exception()
    if error is None:
        return Outcome(RunStatus.COMPLETED)
    if isinstance(error, LeaseLost):
        raise error
    explained = explain(error)
    log.warning("run.failed", extra={"code": explained.code}, exc_info=error if _ours(explained) else None)
    return Outcome(RunStatus.FAILED, explained)


def _ours(error: RunError) -> bool:
    return error.code in ("internal_error", "agent_misconfigured")


async def _stopped(shop: Workshop, run: Run) -> None:
    """Return once someone asked to stop the run, however the word reaches us."""
    while True:
        try:
            async with shop.database.tenant(run.tenant_id) as session:
                current = await session.get(Run, run.id)
            if current is None or current.cancel_requested_at is not None:
                return
            await shop.fabric.signalled(run.id, wait_seconds=SIGNAL_WAIT_SECONDS)
        except Exception:
            # A part that is away for a moment must not look like someone's wish to stop.
            log.warning("run.watch_failed", exc_info=True)
            await asyncio.sleep(WATCH_RETRY_SECONDS)


async def _renew(shop: Workshop, run: Run) -> None:
    """Return once the lease is another's."""
    while True:
        await asyncio.sleep(LEASE.total_seconds() / 3)
        try:
            if not await service.write(shop.database, run, lease_until=service.lease_end()):
                return
        except Exception:
            log.warning("run.renewal_failed", exc_info=True)


async def _play(shop: Workshop, run: Run, turn: Turn, translator: Translator) -> None:
    loaded = shop.registry.specs[run.agent_key]
    async with shop.database.tenant(run.tenant_id) as session:
        message = await session.get_one(Message, run.input_message_id)
        last = await service.last_completed(session, run) if loaded.spec.store else None
        past = await conversations.history(session, run.conversation_id, before=run.input_message_id)
        newer = (
            []
            if last is None
            else await conversations.history(
                session, run.conversation_id, before=run.input_message_id, after=last.output_message_id
            )
        )
    asked = {"role": "user", "content": message.text}
    if last is None:
        await _stream(shop, run, turn, translator, [*past, asked], None)
        return
    try:
        await _stream(shop, run, turn, translator, [*newer, asked], last.response_id)
    except openai.APIStatusError as error:
        # Refused before anything was accepted: our own history takes its place, and nothing is paid twice.
        if error.code != "previous_response_not_found":
            raise
        await _stream(shop, run, turn, translator, [*past, asked], None)


async def _stream(
    shop: Workshop,
    run: Run,
    turn: Turn,
    translator: Translator,
    items: list[dict[str, Any]],
    previous_response_id: str | None,
) -> None:
    def options(agent: LoadedAgent) -> dict[str, Any]:
        return image_options(shop.settings, agent, run.options["image"])

    loaded = shop.registry.specs[run.agent_key]
    turn.asked_options = options(loaded) if "image_generation" in loaded.spec.tool_keys else {}
    agent = build_agent(
        shop.registry,
        run.agent_key,
        model_for=lambda agent: DivertingModel(agent.model, shop.client, turn),
        image_options=options,
        tool_choice=run.options.get("tool_choice"),
        safety_identifier=hashlib.sha256(f"{run.tenant_id}:{run.user_id}".encode()).hexdigest(),
    )
    streamed = Runner.run_streamed(
        agent,
        cast(list[TResponseInputItem], items),
        max_turns=loaded.spec.max_turns,
        previous_response_id=previous_response_id,
        auto_previous_response_id=loaded.spec.store,
        run_config=RunConfig(tracing_disabled=True),
        # A refusal is an answer: its words are what the person reads.
        error_handlers={"model_refusal": _take_refusal},
    )
    try:
        async for event in streamed.stream_events():
            translator.handle(event)
            turn.follow_agent(translator.agent_key or run.agent_key)
    finally:
        streamed.cancel()


def _take_refusal(refused: RunErrorHandlerInput[Any]) -> str:
    error = refused.error
    return error.refusal if isinstance(error, ModelRefusalError) else str(error)


async def _finish(
    shop: Workshop, run: Run, events: EventLog, turn: Turn, translator: Translator, outcome: Outcome
) -> None:
    async with shop.database.tenant(run.tenant_id) as session:
        found = await attachments.of_messages(session, [turn.origin.message_id])
    rows = found.get(turn.origin.message_id, [])
    says_something = bool(translator.text or rows or outcome.status == RunStatus.COMPLETED)
    if says_something:
        translator.start_message()
    ending = Ending(
        status=outcome.status,
        text=translator.text,
        says_something=says_something,
        last_seq=events.seq + 1 + says_something,
        usage=dict(turn.usage),
        model=shop.registry.specs[run.agent_key].model,
        error=outcome.error,
    )
    ended = await service.end(shop.database, run, ending)
    if ended is None:
        raise LeaseLost
    if says_something:
        message = {
            "id": str(turn.origin.message_id),
            "role": "assistant",
            "text": translator.text,
            "attachments": [log_form(row) for row in rows],
            "run_id": str(run.id),
            "created_at": ended.finished_at,
        }
        events.emit("message.completed", message=message)
    emit_end(events, ended)


def emit_end(events: EventLog, run: Run) -> None:
    fields: dict[str, Any] = {"run": RunView.model_validate(run).model_dump(mode="json")}
    if run.error is not None:
        fields["error"] = run.error
    events.emit(f"run.{run.status}", **fields)
