"""Docket tasks of runs: execute one, sweep up after lost workers and lost tasks, repair storage, drop what is old."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from uuid import UUID

from docket import ConcurrencyLimit, Perpetual
from sqlalchemy import or_, select

from app.agents._shared.warm import warm_up
from app.attachments import service as attachments
from app.attachments import variants
from app.attachments.reconcile import reconcile
from app.broker import Broker, running_worker
from app.db import now
from app.errors import Conflict
from app.runs import idempotency, service
from app.runs.engine import HandedOver, execute
from app.runs.log import record
from app.runs.models import Run, RunStatus
from app.runs.refetch import refetch
from app.runs.schemas import RunView
from app.runs.turn import Workshop
from app.storage import keys
from app.storage.store import StorageError

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
REPAIR_SECONDS = 5.0
SWEEP_VARIANTS_EVERY = timedelta(seconds=30)
VARIANTS_AT_ONCE = 4
FORGET_EVERY = timedelta(days=1)
RECONCILE_EVERY = timedelta(days=1)
# A queued run this old has lost its task, or its task waits behind others: enqueuing it again does no harm.
UNCLAIMED_AFTER = timedelta(seconds=5)

EXECUTE = "execute_run"
DROP_PREVIEWS = "drop_previews"


async def launch(broker: Broker, tenant_id: UUID, run: RunView) -> None:
    """After the commit: the first event for whoever listens, and the task."""
    await broker.append(run.id, [record(run.id, 1, "run.created", {"run": run.model_dump(mode="json")})])
    await _enqueue(broker, tenant_id, run.id)


async def _enqueue(
    broker: Broker, tenant_id: UUID, run_id: UUID, lost_attempt: int | None = None, *, behind: UUID | None = None
) -> None:
    """`behind` is the run that had to end first."""
    # The run's first key may still be known: by the lost attempt's own task, or by one that came before its turn.
    key = ":".join(str(part) for part in ("run", run_id, behind, lost_attempt) if part is not None)
    await broker.enqueue(EXECUTE, str(tenant_id), str(run_id), lost_attempt, key=key)


@asynccontextmanager
async def working(shop: Workshop) -> AsyncGenerator[None]:
    """Execute tasks until the block ends; runs that are not at their end then are left to another worker."""
    # Between a paid request and the commit of its answer's id no run can be saved: that time must be short.
    await warm_up()
    async with running_worker(shop.broker, shop.settings, shop.stopping):
        sweep_seconds = min(SWEEP_SECONDS, shop.settings.run_lease_seconds / 4)
        loops = [
            # Every worker looks after its own disk, and all of them after those that are lost.
            asyncio.create_task(_repeat(REPAIR_SECONDS, lambda: _repair(shop))),
            asyncio.create_task(_repeat(REPAIR_SECONDS, partial(refetch, shop, set[UUID]()))),
            asyncio.create_task(_repeat(sweep_seconds, lambda: _sweep(shop))),
        ]
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)


async def _repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            log.warning("housekeeping.failed", exc_info=True)


async def _repair(shop: Workshop) -> None:
    for row in await attachments.repair(shop.database, shop.store, shop.spool):
        await variants.request(shop.broker, row.tenant_id, row.id)


def register(shop: Workshop) -> None:
    """Make the tasks known to the docket; a process that only enqueues needs their names as well."""
    docket = shop.broker.docket
    # One tenant never has all places of a worker.
    most = min(shop.settings.tenant_concurrency, max(shop.settings.worker_concurrency - 1, 1))

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

    async def forget_idempotency_keys(
        perpetual: Perpetual = Perpetual(every=FORGET_EVERY, automatic=True),  # noqa: B008 - docket's way
    ) -> None:
        await idempotency.forget_expired(shop.database)

    for task in (execute_run, drop_previews, forget_idempotency_keys):
        docket.register(task)
    _register_variants(shop)
    _register_reconcile(shop)


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
        await variants.request_missed(shop.database, shop.broker)

    for task in (make_variants, sweep_variants):
        shop.broker.docket.register(task)


def _register_reconcile(shop: Workshop) -> None:
    async def reconcile_store(
        perpetual: Perpetual = Perpetual(every=RECONCILE_EVERY, automatic=True),  # noqa: B008 - docket's way
    ) -> None:
        await _reconcile(shop)

    shop.broker.docket.register(reconcile_store)


async def _reconcile(shop: Workshop) -> None:
    """Broken off where the worker stops: it may take long, and the next look misses nothing."""
    work = asyncio.create_task(reconcile(shop.database, shop.store, shop.spool, shop.settings, apply=True))
    stop = asyncio.create_task(shop.stopping.wait())
    try:
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.cancel()
        stop.cancel()
    outcome, _ = await asyncio.gather(work, stop, return_exceptions=True)
    if isinstance(outcome, StorageError | Conflict | asyncio.CancelledError):
        log.warning("store.not_reconciled", extra={"error": str(outcome) or "the worker stops"})
    elif isinstance(outcome, BaseException):
        raise outcome


async def _execute(shop: Workshop, tenant_id: UUID, run_id: UUID, lost_attempt: int | None) -> None:
    try:
        executed = await execute(shop, tenant_id, run_id, lost_attempt)
    except HandedOver as handed:
        await _enqueue(shop.broker, tenant_id, run_id, handed.attempt)
        return
    if executed:
        later = now() + timedelta(seconds=shop.settings.stream_ttl_seconds)
        await shop.broker.enqueue(DROP_PREVIEWS, str(tenant_id), str(run_id), key=f"previews:{run_id}", when=later)
    waiting = await service.next_queued(shop.database, tenant_id, run_id)
    if waiting is not None:
        await _enqueue(shop.broker, tenant_id, waiting, behind=run_id)


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
        await _enqueue(shop.broker, row.tenant_id, row.id, lost_attempt)
