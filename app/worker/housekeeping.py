"""Periodic work: sweeping up lost runs, repairing storage, erasing, deleting what has expired.

docket's own periodic tasks stall with the worker that held them, so each worker runs plain loops. What is looked for
every few seconds is looked for by one statement: mostly there is nothing.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from sqlalchemy import ColumnElement, func, literal, or_, select

from app import metrics
from app.attachments import variants
from app.attachments.reconcile import reconcile
from app.attachments.repair import store_spooled
from app.compiled import CompiledStatement
from app.erasure import leftovers, work
from app.erasure.retention import retain
from app.errors import Conflict
from app.exports import lease
from app.exports.service import owned_keys
from app.identity import expiry
from app.logs import tagged
from app.runs import idempotency
from app.runs.models import Run, RunStatus
from app.runs.run_log import tags_of_image
from app.storage import keys
from app.storage.store import StorageError
from app.worker import erasing, export_tasks
from app.worker.context import WorkerContext
from app.worker.recovery import Backoff, images_left, recover_images
from app.worker.settling import LEFT_OPEN, Seen, settle_calls

log = logging.getLogger(__name__)

LOOK_EVERY = timedelta(seconds=2)
REPAIR_EVERY = timedelta(seconds=5)
VARIANTS_EVERY = timedelta(seconds=30)
DAILY = timedelta(days=1)
FIRST_AFTER = timedelta(seconds=1)
# How often a worker asks whether it is its turn to do work that one worker does for all.
TURN_EVERY = timedelta(seconds=30)
# A run that is queued for longer waits behind others, or what should have started it is lost.
UNCLAIMED_AFTER = timedelta(seconds=1)


# Runs that nobody has started, or whose worker is lost.
STRANDED = or_(
    (Run.status == RunStatus.QUEUED) & (Run.created_at < func.now() - UNCLAIMED_AFTER),
    (Run.status == RunStatus.RUNNING) & (Run.lease_until <= func.now()),
)


@dataclass(frozen=True, eq=False)
class Job:
    """`shared` work is done once in each interval by one worker of all, other work by each worker.

    Where `due` is given, a row has to fulfil it, or there is nothing to do.
    """

    name: str
    every: timedelta
    work: Callable[[], Awaitable[None]]
    shared: bool = False
    due: ColumnElement[bool] | None = None
    found: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def running(ctx: WorkerContext) -> AsyncGenerator[None]:
    """Do all periodic work until the block ends, which breaks it off: the next time misses nothing."""
    jobs = _jobs(ctx)
    loops = [asyncio.create_task(_repeat(ctx, job)) for job in [_look(ctx, jobs), *jobs]]
    try:
        yield
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


def _look(ctx: WorkerContext, jobs: Sequence[Job]) -> Job:
    """Wakes those for which there is something to do."""
    wanted = [job for job in jobs if job.due is not None]
    due = (select(literal(1)).where(job.due).exists() for job in wanted if job.due is not None)
    statement = CompiledStatement[*tuple[bool, ...]](select(*due))

    async def look() -> None:
        async with ctx.database.identity() as session:
            found = (await statement.execute(session, {})).one()
        for job, is_due in zip(wanted, found, strict=True):
            if is_due:
                job.found.set()

    return Job("look", min(job.every for job in wanted), look)


def _jobs(ctx: WorkerContext) -> list[Job]:
    sweep_every = min(LOOK_EVERY, timedelta(seconds=ctx.settings.run_lease_seconds / 4))
    return [
        Job("sweep", sweep_every, partial(_sweep, ctx), due=STRANDED),
        # Each worker stores what waits on its own disk, and all of them recover what lost workers left.
        Job("store_spooled", REPAIR_EVERY, partial(_store_spooled, ctx)),
        Job("settle_calls", REPAIR_EVERY, partial(settle_calls, ctx, Seen()), due=LEFT_OPEN),
        Job("recover_images", REPAIR_EVERY, partial(recover_images, ctx, Backoff()), due=images_left(ctx.settings)),
        Job(
            "request_variants", VARIANTS_EVERY, partial(variants.request_missed, ctx.database, ctx.broker), shared=True
        ),
        Job("delete_credentials", DAILY, partial(expiry.delete_expired, ctx.database), shared=True),
        Job("sweep_exports", LOOK_EVERY, partial(export_tasks.sweep, ctx), shared=True, due=lease.DUE),
        # Each by every worker: they share the rows that are due.
        Job("erase_rows", LOOK_EVERY, partial(erasing.erase_rows, ctx), due=work.DUE),
        Job("remove_objects", LOOK_EVERY, partial(erasing.remove_objects, ctx), due=leftovers.OBJECTS_DUE),
        Job("remove_from_provider", LOOK_EVERY, partial(erasing.remove_from_provider, ctx), due=leftovers.PROVIDER_DUE),
        Job("retain", DAILY, partial(_retain, ctx), shared=True),
        Job("delete_idempotency_keys", DAILY, partial(idempotency.delete_expired, ctx.database), shared=True),
        Job("reconcile", DAILY, partial(_reconcile, ctx), shared=True),
    ]


async def _repeat(ctx: WorkerContext, job: Job) -> None:
    pause = min(job.every, FIRST_AFTER).total_seconds()
    while not ctx.stopping.is_set():
        await asyncio.sleep(pause)
        if job.due is not None:
            await job.found.wait()
            job.found.clear()
        pause = min(job.every, TURN_EVERY).total_seconds()
        try:
            if not job.shared or await ctx.broker.acquire_turn(job.name, job.every):
                await job.work()
        except Exception:
            metrics.JOB_FAILURES.labels(job.name).inc()
            log.warning("housekeeping.failed", extra={"job": job.name}, exc_info=True)


async def _sweep(ctx: WorkerContext) -> None:
    """Tenants are ready that have runs which nobody has started, or whose worker is lost."""
    async with ctx.database.identity() as session:
        tenants = (await session.scalars(select(Run.tenant_id).distinct().where(STRANDED))).all()
    for tenant_id in tenants:
        await ctx.broker.ready.put(tenant_id)


async def _store_spooled(ctx: WorkerContext) -> None:
    for row in await store_spooled(ctx.database, ctx.store, ctx.spool):
        with tagged(**await tags_of_image(ctx.database, row.tenant_id, row.id)):
            log.info("image.repaired", extra={"object_id": str(row.id)})
        await variants.request(ctx.broker, row.tenant_id, row.id)


async def _retain(ctx: WorkerContext) -> None:
    await retain(ctx.database, ctx.settings)


async def _reconcile(ctx: WorkerContext) -> None:
    try:
        await reconcile(ctx.database, ctx.store, ctx.spool, ctx.settings, {keys.EXPORTS: owned_keys}, apply=True)
    except (StorageError, Conflict) as error:
        log.warning("store.not_reconciled", extra={"error": str(error)})
