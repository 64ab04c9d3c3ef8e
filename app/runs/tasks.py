"""Docket tasks of runs: execute one, sweep up after lost workers and lost tasks, repair storage, drop old previews."""

import logging
from datetime import datetime, timedelta
from uuid import UUID

from docket import Perpetual
from sqlalchemy import or_, select, update

from app.attachments import service as attachments
from app.db import now
from app.fabric import Fabric
from app.runs.engine import execute
from app.runs.failures import UNKNOWN_OUTCOME
from app.runs.log import record
from app.runs.models import Run, RunStatus
from app.runs.schemas import RunView
from app.runs.turn import Workshop
from app.storage import keys
from app.storage.store import StorageError

log = logging.getLogger(__name__)

SWEEP_EVERY = timedelta(seconds=5)
# A queued run this old has lost its task, or its task waits behind others: enqueuing it again does no harm.
UNCLAIMED_AFTER = timedelta(seconds=5)

EXECUTE = "execute_run"
DROP_PREVIEWS = "drop_previews"


async def launch(fabric: Fabric, tenant_id: UUID, run: RunView) -> None:
    """After the commit: the first event for whoever listens, and the task."""
    await fabric.append(run.id, [record(run.id, 1, "run.created", {"run": run.model_dump(mode="json")})])
    await _enqueue(fabric, tenant_id, run.id)


async def _enqueue(fabric: Fabric, tenant_id: UUID, run_id: UUID) -> None:
    await fabric.docket.add(EXECUTE, key=f"run:{run_id}")(tenant_id=str(tenant_id), run_id=str(run_id))


def register(shop: Workshop) -> None:
    """Make the tasks known to the docket; a process that only enqueues needs their names as well."""
    docket = shop.fabric.docket

    async def execute_run(tenant_id: str, run_id: str) -> None:
        await execute(shop, UUID(tenant_id), UUID(run_id))
        await docket.add(DROP_PREVIEWS, when=_later(shop), key=f"previews:{run_id}")(tenant_id, run_id)

    async def drop_previews(tenant_id: str, run_id: str) -> None:
        await _drop_previews(shop, UUID(tenant_id), UUID(run_id))

    async def sweep(perpetual: Perpetual = Perpetual(every=SWEEP_EVERY, automatic=True)) -> None:  # noqa: B008 - docket's way
        await _sweep(shop)

    async def repair_attachments(
        perpetual: Perpetual = Perpetual(every=SWEEP_EVERY, automatic=True),  # noqa: B008 - docket's way
    ) -> None:
        await attachments.repair(shop.database, shop.store, shop.spool)

    for task in (execute_run, drop_previews, sweep, repair_attachments):
        docket.register(task)


def _later(shop: Workshop) -> datetime:
    return now() + timedelta(seconds=shop.settings.stream_ttl_seconds)


async def _drop_previews(shop: Workshop, tenant_id: UUID, run_id: UUID) -> None:
    try:
        async for stored in shop.store.list(keys.preview_prefix(tenant_id, run_id)):
            await shop.store.delete(stored.key)
    except StorageError as error:
        log.warning("previews.not_dropped", extra={"run_id": str(run_id), "error": str(error)})


async def _sweep(shop: Workshop) -> None:
    """Enqueue runs that have no task; end those whose worker is gone."""
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
        if row.status == RunStatus.QUEUED:
            await _enqueue(shop.fabric, row.tenant_id, row.id)
        else:
            await _abandon(shop, row.tenant_id, row.id, row.attempt)


async def _abandon(shop: Workshop, tenant_id: UUID, run_id: UUID, attempt: int) -> None:
    """End a run whose worker is gone: what the provider did is unknown, and nothing is bought again by itself."""
    last_seq = await shop.fabric.last_seq(run_id)
    async with shop.database.tenant(tenant_id) as session:
        ended = await session.scalars(
            update(Run)
            .where(Run.id == run_id, Run.attempt == attempt, Run.status == RunStatus.RUNNING)
            .values(
                status=RunStatus.FAILED,
                attempt=attempt + 1,
                error=UNKNOWN_OUTCOME.as_dict(),
                finished_at=now(),
                lease_until=None,
                last_seq=last_seq + 1,
            )
            .returning(Run)
        )
        run = ended.one_or_none()
    if run is not None:
        log.warning("run.abandoned", extra={"tenant_id": str(tenant_id), "run_id": str(run_id)})
        fields = {"run": RunView.model_validate(run).model_dump(mode="json"), "error": run.error}
        await shop.fabric.append(run_id, [record(run_id, last_seq + 1, "run.failed", fields)])
