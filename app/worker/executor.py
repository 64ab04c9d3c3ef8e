"""One run, from its claim to its terminal event."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from app import metrics
from app.agents._shared.tools import IMAGE_TOOL
from app.provider import errors as provider
from app.runs.events import RunCreated, RunStarted
from app.runs.models import Run, RunStatus
from app.runs.run_log import log_start
from app.runs.schemas import RunView
from app.worker import lease, previews
from app.worker.agent_loop import AgentLoop
from app.worker.call_book import CallBook, unsettled_call
from app.worker.calls import ProviderCalls
from app.worker.context import WorkerContext
from app.worker.errors import AGENT_GONE, EMPTY_ANSWER, PROVIDER_MAY_CONTINUE
from app.worker.event_writer import EventWriter
from app.worker.held_run import Ended
from app.worker.image_options import image_options_of
from app.worker.images import RunImages
from app.worker.lease import LeaseLost
from app.worker.model_input import RunInput
from app.worker.run_end import Outcome, RunEnd
from app.worker.translator import Translator

log = logging.getLogger(__name__)

SIGNAL_WAIT_SECONDS = 15.0
SIGNAL_RETRY_SECONDS = 1.0
# How long a worker that stops waits for its runs to end by themselves.
GRACE_SECONDS = 1.5
# Give up after 20 attempts: such a run probably crashes its worker.
MAX_ATTEMPTS = 20


class RunReleased(Exception):
    """This worker is stopping: another may claim the run."""


async def execute(ctx: WorkerContext, run: Run, request: RunInput | Exception) -> Ended | None:
    """Execute a run that was just claimed, to its end; None where another worker holds it now.

    A run that a worker lost resumes the response that was already requested. Raises RunReleased.
    """
    with metrics.RUNS_EXECUTING.track_inprogress():
        metrics.run_started(attempt=run.attempt, requested_at=run.created_at, started_at=run.started_at)
        execution = await _open(ctx, run, request)
        ended = await execution.execute()
        # An earlier attempt may have shown previews.
        if execution.images.previews.tasks or run.attempt > 1:
            await previews.drop_later(ctx, run)
        return ended


def resumed_response(run: Run) -> str | None:
    """The response that an earlier attempt requested and the provider completes without a listener."""
    return run.response_id if run.background else None


async def _open(ctx: WorkerContext, run: Run, request: RunInput | Exception) -> "Execution":
    resumed = resumed_response(run)
    written = await ctx.broker.events.fence(run.id, run.attempt)
    events = EventWriter(ctx.broker.events, run.id, run.attempt, written)
    options = image_options_of(ctx.settings, ctx.registry, run)
    images = RunImages(ctx, run, events, options, written)
    left = await unsettled_call(ctx.database, run, images.rows, written)
    book = CallBook(run, ctx.prices, options, images.rows.ids, left)
    calls = ProviderCalls(ctx, run, book, images.rows, resumed)
    translator = Translator(events, images, run.output_message_id, written, resumed)
    loop = AgentLoop(ctx, run, request, calls, images, options, translator)
    end = RunEnd(ctx, run, events, calls, images, translator)
    return Execution(ctx, run, events, calls, images, translator, loop, end)


@dataclass(frozen=True)
class Execution:
    """One attempt at a run and its parts."""

    ctx: WorkerContext
    run: Run
    events: EventWriter
    calls: ProviderCalls
    images: RunImages
    translator: Translator
    loop: AgentLoop
    end: RunEnd

    async def execute(self) -> Ended | None:
        """Returns how the run ended; None where another worker holds it now."""
        log_start(self.run, self.ctx.registry)
        self._emit_start()
        try:
            outcome = await self._outcome()
            if outcome.status == RunStatus.CANCELLED or (outcome.error and outcome.error.code in PROVIDER_MAY_CONTINUE):
                await self.calls.cancel()
            await self._finish_writing()
            if outcome.status == RunStatus.COMPLETED:
                self.translator.emit_missing(forced=_forced_tool(self.ctx, self.run) == IMAGE_TOOL)
                if self.translator.is_empty:
                    outcome = Outcome(RunStatus.FAILED, EMPTY_ANSWER)
            ended = await self.end.write(outcome)
        except LeaseLost:
            log.warning("run.lease_lost")
            await self.calls.lose()
            return None
        except RunReleased:
            await self._release()
            raise
        else:
            await self.events.flush()
            return ended
        finally:
            self.events.close()

    def _emit_start(self) -> None:
        view = RunView.model_validate(self.run)
        # The API wrote run.created already, unless the broker was unavailable then.
        queued = view.model_copy(update={"status": RunStatus.QUEUED, "started_at": None})
        self.events.emit(RunCreated(run=queued))
        self.events.emit(RunStarted(run=view))

    async def _outcome(self) -> Outcome:
        run = self.run
        if run.agent_key not in self.ctx.registry.specs:
            return Outcome(RunStatus.FAILED, AGENT_GONE)
        if self.calls.is_lost or run.attempt > MAX_ATTEMPTS:
            return Outcome.failed(provider.unknown_outcome())
        return await self._supervise()

    async def _supervise(self) -> Outcome:
        """Run the agent loop until it ends, is stopped, or takes too long; renew the lease meanwhile."""
        seconds = self.ctx.settings.run_lease_seconds
        loop = asyncio.create_task(self.loop.run())
        stop = asyncio.create_task(self._until_cancelled())
        lost = asyncio.create_task(lease.keep_renewing(self.ctx.database, self.run, seconds))
        drain = asyncio.create_task(self.ctx.stopping.wait())
        watched: set[asyncio.Task[Any]] = {loop, stop, lost, drain}
        try:
            timeout = self.ctx.settings.run_timeout_seconds
            await asyncio.wait(watched, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if drain.done():
                await asyncio.wait({loop, stop, lost}, timeout=GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            may_go_on = drain.done() or self.run.background
            if may_go_on and not (lost.done() or loop.done()) and self.calls.awaits_name:
                named = asyncio.create_task(self.calls.no_request_in_flight.wait())
                watched.add(named)
                await asyncio.wait({loop, lost, named}, timeout=GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if loop.done():
                return _outcome_of(loop)
            if lost.done():
                raise LeaseLost
            if stop.done():
                return Outcome(RunStatus.CANCELLED)
            if drain.done():
                raise RunReleased
            return Outcome.failed(provider.timed_out())
        finally:
            for task in watched:
                task.cancel()
            await asyncio.gather(*watched, return_exceptions=True)

    async def _until_cancelled(self) -> None:
        """Return once a user has asked to stop the run or deleted it; until then tell of its images' smaller copies."""
        current: Run | None = self.run  # as the claim has just read it
        seen = newest = ""
        while current is not None and current.cancel_requested_at is None:
            async with _log_and_pause():
                newest = await self.ctx.broker.events.signalled(self.run.id, seen, wait_seconds=SIGNAL_WAIT_SECONDS)
            async with _log_and_pause(), self.ctx.database.tenant(self.run.tenant_id) as session:
                current = await session.get(Run, self.run.id)
                await self.images.reports.look_for_copies(session)
                seen = newest  # not before: a failed look is repeated

    async def _finish_writing(self) -> None:
        """A store or database that hangs may take longer than the lease, so the lease is renewed here as well."""
        seconds = self.ctx.settings.run_lease_seconds
        renewing = asyncio.create_task(lease.keep_renewing(self.ctx.database, self.run, seconds))
        try:
            await self.calls.until_opened()
            await self.images.finish_storing()
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _release(self) -> None:
        """Images that the next attempt will receive again may be dropped; others are stored now or never."""
        if self.calls.resumable:
            self.images.abandon()
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_SECONDS):
                    await self.images.finish_storing()
        await self.events.flush()
        await self.calls.release()
        log.info("run.released")


def _forced_tool(ctx: WorkerContext, run: Run) -> str | None:
    return run.options.tool_choice or ctx.registry.specs[run.agent_key].spec.tool_choice


def _outcome_of(loop: asyncio.Task[None]) -> Outcome:
    error = loop.exception()
    if error is None:
        return Outcome(RunStatus.COMPLETED)
    if isinstance(error, LeaseLost):
        raise error
    return Outcome.failed(error)


@asynccontextmanager
async def _log_and_pause() -> AsyncGenerator[None]:
    """An unavailable database or broker must not look like a request to stop."""
    try:
        yield
    except Exception:
        log.warning("run.watch_failed", exc_info=True)
        await asyncio.sleep(SIGNAL_RETRY_SECONDS)
