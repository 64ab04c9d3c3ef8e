"""The worker's tasks beside its runs: making variants, dropping previews, sending mail, writing exports."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from app.attachments import service as attachments
from app.attachments.variant_maker import make as make_variants_of
from app.logs import tag
from app.runs.run_log import tags_of_image, tags_of_run
from app.storage.store import StorageError
from app.worker.context import WorkerContext
from app.worker.export_tasks import export_tasks
from app.worker.mail_tasks import mail_tasks
from app.worker.quiet_worker import QuietWorker

log = logging.getLogger(__name__)

TASKS_AT_ONCE = 4
# A task whose worker died is delivered again after this share of a run's lease.
REDELIVERY_SHARE = 0.75
# A new task wakes an idle worker at once. This long a freed slot may stay empty where all were taken.
SLOT_CHECK = timedelta(seconds=0.5)
# Of tasks that wait for a time: seconds until a mail is tried again, hours until previews are dropped.
SCHEDULE_CHECK = timedelta(seconds=2)
RECONNECTION_DELAY = timedelta(seconds=1)


@asynccontextmanager
async def running(ctx: WorkerContext) -> AsyncGenerator[None]:
    """Execute tasks until `ctx.stopping` is set: none begins after that, and the block's end waits for those that did.

    The block's end sets `ctx.stopping`.
    """
    _register(ctx)
    async with QuietWorker(
        ctx.broker.docket,
        concurrency=TASKS_AT_ONCE,
        redelivery_timeout=timedelta(seconds=ctx.settings.run_lease_seconds * REDELIVERY_SHARE),
        minimum_check_interval=SLOT_CHECK,
        scheduling_resolution=SCHEDULE_CHECK,
        reconnection_delay=RECONNECTION_DELAY,
    ) as worker:
        executing = asyncio.create_task(worker.run_forever())
        stopping_worker = asyncio.create_task(_stop_worker(executing, ctx.stopping))
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
    async def drop_previews(tenant_id: str, run_id: str) -> None:
        try:
            await attachments.drop_previews(ctx.store, UUID(tenant_id), UUID(run_id))
        except StorageError as error:
            tag(**await tags_of_run(ctx.database, UUID(tenant_id), UUID(run_id)))
            log.warning("previews.not_dropped", extra={"error": str(error)})

    async def make_variants(tenant_id: str, object_id: str) -> None:
        try:
            run_id = await make_variants_of(ctx.database, ctx.store, UUID(tenant_id), UUID(object_id))
            if run_id is not None:
                await ctx.broker.events.signal(run_id)  # its readers are told, if it has not ended
        except StorageError as error:
            tag(**await tags_of_image(ctx.database, UUID(tenant_id), UUID(object_id)))
            log.warning("variants.postponed", extra={"object_id": object_id, "error": str(error)})

    for task in (drop_previews, make_variants, *mail_tasks(ctx), *export_tasks(ctx)):
        ctx.broker.docket.register(task)
