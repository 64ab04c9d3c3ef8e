"""One run from claim to terminal event."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from app.agents._shared.tools import IMAGE_TOOL
from app.attachments import service as attachments
from app.attachments.models import Attachment
from app.attachments.schemas import log_form
from app.db import now, patient
from app.logs import tagged
from app.runs import service
from app.runs.failures import AGENT_GONE, TIMEOUT, UNKNOWN_OUTCOME, explain
from app.runs.log import EventLog
from app.runs.models import Run, RunStatus
from app.runs.play import play
from app.runs.schemas import RunView
from app.runs.service import Ending, RunError
from app.runs.told import Teller, read
from app.runs.translate import Translator
from app.runs.turn import LeaseLost, Turn, Workshop

log = logging.getLogger(__name__)

SIGNAL_WAIT_SECONDS = 15.0
WATCH_RETRY_SECONDS = 1.0
# What a worker that stops waits for its runs to end by themselves.
GRACE_SECONDS = 1.5
# A run that has lost so many workers is what kills them.
MOST_ATTEMPTS = 20
# Failures after which the provider may still be at work.
LEFT_OPEN = frozenset(
    {
        "upstream_timeout",
        "upstream_disconnected",
        "upstream_unreadable",
        "upstream_outcome_unknown",
        "unknown_agent",
        "internal_error",
    }
)


@dataclass(frozen=True)
class Outcome:
    status: RunStatus
    error: RunError | None = None


class HandedOver(Exception):
    """This worker is stopping: the run is free for another, who takes it from this `attempt`."""

    def __init__(self, attempt: int) -> None:
        super().__init__(f"attempt {attempt}")
        self.attempt = attempt


async def execute(shop: Workshop, tenant_id: UUID, run_id: UUID, lost_attempt: int | None = None) -> bool:
    """Claim the run and see it to its end; False, at once, where it is not to be had.

    A run that a worker lost goes on with the answer that the provider was already asked for. Raises HandedOver.
    """
    lease_seconds = shop.settings.run_lease_seconds
    run = await service.claim(shop.database, tenant_id, run_id, lease_seconds=lease_seconds, lost_attempt=lost_attempt)
    if run is None:
        return False
    with tagged(tenant_id=tenant_id, run_id=run_id):
        await _carry_out(shop, run)
    return True


async def _carry_out(shop: Workshop, run: Run) -> None:
    resumable = run.background and run.response_id is not None
    told = read(await shop.broker.fence(run.id, run.attempt), run.response_id if resumable else None)
    events = EventLog(shop.broker, run.id, run.attempt, seq=told.seq)
    _tell_of_the_start(events, run)
    turn = Turn(shop, run, events, told)
    teller = Teller(events.emit, told)
    translator = Translator(teller, message_id=str(run.output_message_id), told=told)
    try:
        if run.agent_key not in shop.registry.specs:
            outcome = Outcome(RunStatus.FAILED, AGENT_GONE)
        elif (run.calling_turn and not resumable) or run.attempt > MOST_ATTEMPTS:
            outcome = Outcome(RunStatus.FAILED, UNKNOWN_OUTCOME)
        else:
            outcome = await _supervise(shop, run, turn, teller, translator)
        if outcome.status == RunStatus.CANCELLED or (outcome.error and outcome.error.code in LEFT_OPEN):
            await turn.stop_provider()
        await _settle(shop, run, turn)
        if outcome.status == RunStatus.COMPLETED:
            translator.tell_missing(turn.drawn, forced=_forced_tool(shop, run) == IMAGE_TOOL)
        await _finish(shop, run, events, turn, translator, outcome)
    except LeaseLost:
        log.warning("run.lease_lost")
        if await service.is_deleted(shop.database, run):
            await turn.stop_provider()
    except HandedOver:
        await _put_down(turn)
        await events.flush()
        await service.hand_over(shop.database, run)
        log.info("run.handed_over")
        raise
    await events.flush()


async def _put_down(turn: Turn) -> None:
    """What the next attempt is sent again may be left as it is; anything else is stored now or never."""
    if turn.resumable:
        turn.abandon()
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            await turn.settle()


def _tell_of_the_start(events: EventLog, run: Run) -> None:
    view = RunView.model_validate(run)
    if events.seq == 0:
        # The API wrote this one already, unless the broker was away then: its number keeps it single.
        queued = view.model_copy(update={"status": RunStatus.QUEUED, "started_at": None})
        events.emit("run.created", run=queued.model_dump(mode="json"))
    if events.seq == 1:
        events.emit("run.started", run=view.model_dump(mode="json"))


async def _supervise(shop: Workshop, run: Run, turn: Turn, teller: Teller, translator: Translator) -> Outcome:
    """Play the turn until it ends, is stopped, or takes too long; renew the lease meanwhile."""
    playing = asyncio.create_task(play(shop, run, turn, teller, translator))
    stop = asyncio.create_task(_stopped(shop, run))
    lease = asyncio.create_task(_renew(shop, run))
    drain = asyncio.create_task(_draining(shop))
    watched = {playing, stop, lease, drain}
    try:
        timeout = shop.settings.run_timeout_seconds
        await asyncio.wait(watched, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if drain.done():
            await asyncio.wait({playing, stop, lease}, timeout=GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            await _until_named(turn)
        if playing.done():
            return _outcome(playing)
        if lease.done():
            raise LeaseLost
        if stop.done():
            return Outcome(RunStatus.CANCELLED)
        if drain.done():
            raise HandedOver(run.attempt)
        return Outcome(RunStatus.FAILED, TIMEOUT)
    finally:
        for task in watched:
            task.cancel()
        await asyncio.gather(*watched, return_exceptions=True)


async def _until_named(turn: Turn) -> None:
    """Without the answer's name nobody could go on with it: that is worth another moment."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            await turn.nothing_asked.wait()


def _outcome(playing: asyncio.Task[None]) -> Outcome:
    error = playing.exception()
    if error is None:
        return Outcome(RunStatus.COMPLETED)
    if isinstance(error, LeaseLost):
        raise error
    explained = explain(error)
    log.warning("run.failed", extra={"code": explained.code}, exc_info=error if _ours(explained) else None)
    return Outcome(RunStatus.FAILED, explained)


def _forced_tool(shop: Workshop, run: Run) -> str | None:
    return run.options.get("tool_choice") or shop.registry.specs[run.agent_key].spec.tool_choice


def _ours(error: RunError) -> bool:
    return error.code in ("internal_error", "agent_misconfigured")


async def _draining(shop: Workshop) -> None:
    await shop.stopping.wait()


async def _stopped(shop: Workshop, run: Run) -> None:
    """Return once someone asked to stop the run, however the word reaches us."""
    while True:
        try:
            async with shop.database.tenant(run.tenant_id) as session:
                current = await session.get(Run, run.id)
            if current is None or current.cancel_requested_at is not None:
                return
            await shop.broker.signalled(run.id, wait_seconds=SIGNAL_WAIT_SECONDS)
        except Exception:
            # A part that is away for a moment must not look like someone's wish to stop.
            log.warning("run.watch_failed", exc_info=True)
            await asyncio.sleep(WATCH_RETRY_SECONDS)


async def _renew(shop: Workshop, run: Run) -> None:
    """Return once the lease is another's."""
    seconds = shop.settings.run_lease_seconds
    while True:
        await asyncio.sleep(seconds / 3)
        try:
            if not await service.write(shop.database, run, lease_until=now() + timedelta(seconds=seconds)):
                return
        except Exception:
            log.warning("run.renewal_failed", exc_info=True)


async def _finish(
    shop: Workshop, run: Run, events: EventLog, turn: Turn, translator: Translator, outcome: Outcome
) -> None:
    rows = await _pictures_of(shop, turn)
    says_something = bool(translator.text or rows or outcome.status == RunStatus.COMPLETED)
    if says_something:
        translator.start_message()
    loaded = shop.registry.specs.get(run.agent_key)
    ending = Ending(
        status=outcome.status,
        text=translator.text,
        says_something=says_something,
        last_seq=events.seq + 1 + says_something,
        usage=dict(turn.usage),
        model=loaded.model if loaded else "",
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
            "created_at": RunView.model_validate(ended).model_dump(mode="json")["finished_at"],
        }
        events.emit("message.completed", message=message)
    _emit_end(events, ended)


async def _settle(shop: Workshop, run: Run, turn: Turn) -> None:
    """A store or database that hangs may take longer than the lease, so that is renewed here as well."""
    lease = asyncio.create_task(_renew(shop, run))
    try:
        await turn.settle()
    finally:
        lease.cancel()
        await asyncio.gather(lease, return_exceptions=True)


@patient
async def _pictures_of(shop: Workshop, turn: Turn) -> list[Attachment]:
    async with shop.database.tenant(turn.origin.tenant_id) as session:
        found = await attachments.of_messages(session, [turn.origin.message_id])
    return found.get(turn.origin.message_id, [])


def _emit_end(events: EventLog, run: Run) -> None:
    fields: dict[str, Any] = {"run": RunView.model_validate(run).model_dump(mode="json")}
    if run.error is not None:
        fields["error"] = run.error
    events.emit(f"run.{run.status}", **fields)
