"""The worker's tasks: executing runs, making variants, dropping previews."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from docket import ConcurrencyLimit, Worker

from app.attachments import service as attachments
from app.attachments import variants
from app.db import now
from app.runs import service as runs
from app.runs.models import Run
from app.storage.store import StorageError
from app.worker.context import WorkerContext
from app.worker.executor import RunReleased, execute
from app.worker.mail_tasks import mail_tasks

log = logging.getLogger(__name__)

VARIANTS_AT_ONCE = 4
DROP_PREVIEWS = "drop_previews"
# A task whose worker died is delivered again after this share of a run's lease.
REDELIVERY_SHARE = 0.75
# A new task wakes an idle worker at once. This long a freed slot may stay empty while all were taken: a tenant's long
# queue passes through one slot, a task at a time, before the run of another tenant behind it starts.
SLOT_CHECK = timedelta(milliseconds=5)
# Of tasks that wait for a time, such as dropping previews hours later.
SCHEDULE_CHECK = timedelta(seconds=1)
RECONNECTION_DELAY = timedelta(seconds=1)


@asynccontextmanager
async def running(ctx: WorkerContext) -> AsyncGenerator[None]:
    """Execute tasks until `ctx.stopping` is set: none begins after that, and the block's end waits for those that did.

    The block's end sets `ctx.stopping`.
    """
    _register(ctx)
    async with Worker(
        ctx.broker.docket,
        concurrency=ctx.settings.worker_concurrency,
        redelivery_timeout=timedelta(seconds=ctx.settings.run_lease_seconds * REDELIVERY_SHARE),
        minimum_check_interval=SLOT_CHECK,
        scheduling_resolution=SCHEDULE_CHECK,
        reconnection_delay=RECONNECTION_DELAY,
    ) as worker:
        executing = asyncio.create_task(worker.run_forever())
        stopping_worker = asyncio.create_task(_stop_worker(executing, ctx.stopping))
        log.info("worker.started")
        try:
            yield
        finally:
            ctx.stopping.set()
            await asyncio.gather(executing, stopping_worker, return_exceptions=True)


async def _stop_worker(executing: asyncio.Task[None], stopping: asyncio.Event) -> None:
    await stopping.wait()
    # Once only: docket finishes its tasks after the first cancellation, and breaks them off after a second.
    executing.cancel()


def _register(ctx: WorkerContext) -> None:
    # One tenant never has all places of a worker.
    most = min(ctx.settings.tenant_concurrency, max(ctx.settings.worker_concurrency - 1, 1))

    async def execute_run(
        tenant_id: str,
        run_id: str,
        lost_attempt: int | None = None,
        # A tenant's runs beyond this wait outside the workers, so that no other tenant waits behind them.
        limit: ConcurrencyLimit = ConcurrencyLimit("tenant_id", most),  # noqa: B008 - docket's way
    ) -> None:
        await _execute(ctx, UUID(tenant_id), UUID(run_id), lost_attempt)

    async def drop_previews(tenant_id: str, run_id: str) -> None:
        await _drop_previews(ctx, UUID(tenant_id), UUID(run_id))

    async def make_variants(
        tenant_id: str,
        object_id: str,
        # Further images wait outside the workers, whose places are for runs.
        limit: ConcurrencyLimit = ConcurrencyLimit(max_concurrent=VARIANTS_AT_ONCE),  # noqa: B008 - docket's way
    ) -> None:
        try:
            await variants.make(ctx.database, ctx.store, UUID(tenant_id), UUID(object_id))
        except StorageError as error:
            log.warning("variants.postponed", extra={"object_id": object_id, "error": str(error)})

    for task in (execute_run, drop_previews, make_variants, *mail_tasks(ctx)):
        ctx.broker.docket.register(task)


async def _execute(ctx: WorkerContext, tenant_id: UUID, run_id: UUID, lost_attempt: int | None) -> None:
    try:
        executed = await execute(ctx, tenant_id, run_id, lost_attempt)
    except RunReleased as released:
        await runs.enqueue(ctx.broker, tenant_id, run_id, released.attempt)
        return
    if executed is not None:
        later = now() + timedelta(seconds=ctx.settings.stream_ttl_seconds)
        await ctx.broker.enqueue(DROP_PREVIEWS, str(tenant_id), str(run_id), key=f"previews:{run_id}", when=later)
    if executed is not None and executed.ended is not None:
        waiting = executed.ended.waiting
    else:
        # The run may have ended elsewhere: as it was cancelled in the queue, for example.
        waiting = await _find_waiting(ctx, tenant_id, run_id)
    if waiting is not None:
        await runs.enqueue(ctx.broker, tenant_id, waiting, behind=run_id)


async def _find_waiting(ctx: WorkerContext, tenant_id: UUID, run_id: UUID) -> UUID | None:
    async with ctx.database.tenant(tenant_id) as session:
        run = await session.get(Run, run_id)
        # A run that was deleted with its conversation has none.
        return run and await runs.next_queued(session, run)


async def _drop_previews(ctx: WorkerContext, tenant_id: UUID, run_id: UUID) -> None:
    try:
        await attachments.drop_previews(ctx.store, tenant_id, run_id)
    except StorageError as error:
        log.warning("previews.not_dropped", extra={"run_id": str(run_id), "error": str(error)})
