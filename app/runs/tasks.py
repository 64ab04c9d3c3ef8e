"""Docket tasks of runs: execute one, sweep up after lost workers and lost tasks, repair storage, drop what is old."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from uuid import UUID

from docket import ConcurrencyLimit, Perpetual
from sqlalchemy import or_, select

from app.attachments import service as attachments
from app.attachments import variants
from app.db import now
from app.fabric import Fabric, running_worker
from app.runs import idempotency, service
from app.runs.engine import HandedOver, execute
from app.runs.log import record
from app.runs.models import Run, RunStatus
from app.runs.schemas import RunView
from app.runs.turn import Workshop
from app.storage import keys
from app.storage.store import StorageError

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
REPAIR_EVERY_SECONDS = 5.0
SWEEP_VARIANTS_EVERY = timedelta(seconds=30)
VARIANTS_AT_ONCE = 4
FORGET_EVERY = timedelta(days=1)
# A queued run this old has lost its task, or its task waits behind others: enqueuing it again does no harm.
UNCLAIMED_AFTER = timedelta(seconds=5)

EXECUTE = "execute_run"
DROP_PREVIEWS = "drop_previews"


async def launch(fabric: Fabric, tenant_id: UUID, run: RunView) -> None:
    """After the commit: the first event for whoever listens, and the task."""
    await fabric.append(run.id, [record(run.id, 1, "run.created", {"run": run.model_dump(mode="json")})])
    await _enqueue(fabric, tenant_id, run.id)


async def _enqueue(fabric: Fabric, tenant_id: UUID, run_id: UUID, lost_attempt: int | None = None) -> None:
    # The lost attempt's own task may still be known under the run's first key.
    key = f"run:{run_id}" if lost_attempt is None else f"run:{run_id}:{lost_attempt}"
    await fabric.docket.add(EXECUTE, key=key)(str(tenant_id), str(run_id), lost_attempt)


@asynccontextmanager
async def working(shop: Workshop) -> AsyncGenerator[None]:
    """Execute tasks until the block ends; runs that are not at their end then are left to another worker."""
    async with running_worker(shop.fabric, shop.settings):
        repairs = asyncio.create_task(_keep_repairing(shop))
        try:
            yield
        finally:
            shop.stopping.set()
            repairs.cancel()
            await asyncio.gather(repairs, return_exceptions=True)


async def _keep_repairing(shop: Workshop) -> None:
    """Every worker looks after its own disk."""
    while True:
        await asyncio.sleep(REPAIR_EVERY_SECONDS)
        try:
            await attachments.repair(shop.database, shop.store, shop.spool)
        except Exception:
            log.warning("image.repair_failed", exc_info=True)


def register(shop: Workshop) -> None:
    """Make the tasks known to the docket; a process that only enqueues needs their names as well."""
    docket = shop.fabric.docket
    most = shop.settings.tenant_concurrency
    every = timedelta(seconds=min(SWEEP_SECONDS, shop.settings.run_lease_seconds / 4))

    async def execute_run(
        tenant_id: str,
        run_id: str,
        lost_attempt: int | None = None,
        # What a tenant has beyond this waits outside the workers, so that nobody waits behind it.
        limit: ConcurrencyLimit = ConcurrencyLimit("tenant_id", most),  # noqa: B008 - docket's way
    ) -> None:
        await _execute(shop, UUID(tenant_id), UUID(run_id), lost_attempt)

    async def drop_previews(tenant_id: str, run_id: str) -> None:
        await _drop_previews(shop, UUID(tenant_id), UUID(run_id))

    async def sweep(perpetual: Perpetual = Perpetual(every=every, automatic=True)) -> None:  # noqa: B008 - docket's way
        await _sweep(shop)

    async def forget_idempotency_keys(
        perpetual: Perpetual = Perpetual(every=FORGET_EVERY, automatic=True),  # noqa: B008 - docket's way
    ) -> None:
        await idempotency.forget_expired(shop.database)

    for task in (execute_run, drop_previews, sweep, forget_idempotency_keys):
        docket.register(task)
    _register_variants(shop)


def _register_variants(shop: Workshop) -> None:
    async def make_variants(
        tenant_id: str,
        object_id: str,
        # Further pictures wait outside the workers, whose places are for runs.
        limit: ConcurrencyLimit = ConcurrencyLimit(max_concurrent=VARIANTS_AT_ONCE),  # noqa: B008 - docket's way
    ) -> None:
        try:
            await variants.make(shop.database, shop.store, UUID(tenant_id), UUID(object_id))
        except StorageError as error:
            log.warning("variants.postponed", extra={"object_id": object_id, "error": str(error)})

    async def sweep_variants(
        perpetual: Perpetual = Perpetual(every=SWEEP_VARIANTS_EVERY, automatic=True),  # noqa: B008 - docket's way
    ) -> None:
        await variants.request_missed(shop.database, shop.fabric)

    for task in (make_variants, sweep_variants):
        shop.fabric.docket.register(task)


async def _execute(shop: Workshop, tenant_id: UUID, run_id: UUID, lost_attempt: int | None) -> None:
    try:
        await execute(shop, tenant_id, run_id, lost_attempt)
    except HandedOver as handed:
        await _enqueue(shop.fabric, tenant_id, run_id, handed.attempt)
        return
    drop = shop.fabric.docket.add(DROP_PREVIEWS, when=_later(shop), key=f"previews:{run_id}")
    await drop(str(tenant_id), str(run_id))
    waiting = await service.next_queued(shop.database, tenant_id, run_id)
    if waiting is not None:
        await _enqueue(shop.fabric, tenant_id, waiting)


def _later(shop: Workshop) -> datetime:
    return now() + timedelta(seconds=shop.settings.stream_ttl_seconds)


async def _drop_previews(shop: Workshop, tenant_id: UUID, run_id: UUID) -> None:
    try:
        async for stored in shop.store.list(keys.preview_prefix(tenant_id, run_id)):
            await shop.store.delete(stored.key)
    except StorageError as error:
        log.warning("previews.not_dropped", extra={"run_id": str(run_id), "error": str(error)})


async def _sweep(shop: Workshop) -> None:
    """Enqueue runs that have no task, and those whose worker is gone."""
    async with shop.database.identity() as session:
        found = await session.execute(
            select(Run.id, Run.tenant_id, Run.status, Run.attempt).where(
                or_(
                    (Run.status == RunStatus.QUEUED) & (Run.created_at < now() - UNCLAIMED_AFTER),
                    (Run.status == RunStatus.RUNNING) & (Run.lease_until < now()),
                )
            )
        )
        rows = found.all()
    for row in rows:
        lost_attempt = row.attempt if row.status == RunStatus.RUNNING else None
        await _enqueue(shop.fabric, row.tenant_id, row.id, lost_attempt)
