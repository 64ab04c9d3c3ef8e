"""A worker's lease of an export, by Postgres' clock: claimed, renewed, released; each write depends on the attempt."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, retry_while_unavailable
from app.exports.models import OPEN, Export, ExportStatus
from app.exports.service import KEPT
from app.storage.store import Store

log = logging.getLogger(__name__)

ATTEMPTS = 10
# After each failure twice as long: the store may be away for a quarter of an hour.
LONGEST_PAUSE_SECONDS = 300.0
# An export that is queued for longer waits behind others, or its task is lost.
UNCLAIMED_AFTER = timedelta(seconds=1)


_ABANDONED = (Export.status == ExportStatus.RUNNING) & (Export.lease_until <= func.now())
_CLAIMABLE = or_(Export.status == ExportStatus.QUEUED, _ABANDONED)
_UNCLAIMED = or_(
    (Export.status == ExportStatus.QUEUED) & (Export.created_at < func.now() - UNCLAIMED_AFTER), _ABANDONED
)
_EXPIRED = Export.status.not_in(OPEN) & (Export.expires_at <= func.now())
DUE = or_(_UNCLAIMED, _EXPIRED)


async def claim(database: Database, tenant_id: UUID, export_id: UUID, *, lease_seconds: float) -> Export | None:
    """None where another worker holds it, it has ended, or it was tried too often."""
    async with database.tenant(tenant_id) as session:
        claimed = await session.scalar(
            update(Export)
            .where(Export.id == export_id, _CLAIMABLE)
            .values(status=ExportStatus.RUNNING, attempt=Export.attempt + 1, lease_until=_in(lease_seconds))
            .returning(Export)
        )
    # Such an export probably crashes its worker.
    if claimed is not None and claimed.attempt > ATTEMPTS:
        await _fail(database, claimed)
        return None
    return claimed


async def claimable(database: Database) -> Sequence[tuple[UUID, UUID]]:
    """Tenants and ids of exports that nobody has begun, or whose worker is lost."""
    async with database.identity() as session:
        found = await session.execute(select(Export.tenant_id, Export.id).where(_UNCLAIMED))
        return [(row.tenant_id, row.id) for row in found]


async def keep_renewing(database: Database, export: Export, lease_seconds: float) -> None:
    """Return once another attempt holds the export, or it is deleted."""
    while True:
        await asyncio.sleep(lease_seconds / 3)
        try:
            if not await _write(database, export, lease_until=_in(lease_seconds)):
                return
        except Exception:
            log.warning("export.renewal_failed", extra=facts_of(export), exc_info=True)


async def release(database: Database, export: Export) -> None:
    """Let another worker claim the export at once."""
    await _write(database, export, lease_until=func.now())


async def postpone(database: Database, export: Export) -> bool:
    """Let a worker try again after a while; False where that was the last attempt."""
    if export.attempt >= ATTEMPTS:
        await _fail(database, export)
        return False
    await _write(database, export, lease_until=_in(min(2.0**export.attempt, LONGEST_PAUSE_SECONDS)))
    return True


@retry_while_unavailable
async def complete(database: Database, export: Export, *, size_bytes: int, sha256: str) -> bool:
    """It replaces the user's earlier one of its scope; False where another attempt holds the export."""
    values = {"status": ExportStatus.COMPLETED, "size_bytes": size_bytes, "sha256": sha256}
    async with database.tenant(export.tenant_id) as session:
        if not await _update_held(session, export, **values, lease_until=None, expires_at=_in(KEPT.total_seconds())):
            return False
        earlier = (Export.user_id == export.user_id, Export.scope == export.scope, Export.id != export.id)
        await session.execute(
            update(Export).where(*earlier, Export.status == ExportStatus.COMPLETED).values(expires_at=func.now())
        )
    return True


def facts_of(export: Export) -> dict[str, object]:
    """Of every line that the log has about it."""
    return {"tenant_id": str(export.tenant_id), "user_id": str(export.user_id), "export_id": str(export.id)}


async def _fail(database: Database, export: Export) -> None:
    await _write(database, export, status=ExportStatus.FAILED, lease_until=None, expires_at=_in(KEPT.total_seconds()))
    log.error("export.failed", extra=facts_of(export))


@retry_while_unavailable
async def _write(database: Database, export: Export, **values: Any) -> bool:
    async with database.tenant(export.tenant_id) as session:
        return await _update_held(session, export, **values)


async def _update_held(session: AsyncSession, export: Export, **values: Any) -> bool:
    """Changes nothing where another attempt holds the export."""
    held = (Export.id == export.id, Export.attempt == export.attempt, Export.status == ExportStatus.RUNNING)
    written = await session.execute(update(Export).where(*held).values(**values).returning(Export.id))
    return written.one_or_none() is not None


def _in(seconds: float) -> ColumnElement[datetime]:
    return func.clock_timestamp() + timedelta(seconds=seconds)


async def delete_expired(database: Database, store: Store) -> None:
    """Objects first: a row that is left says what is to be done. Raises StorageError."""
    async with database.identity() as session:
        found = await session.execute(select(Export.tenant_id, Export.id).where(_EXPIRED))
        rows = found.all()
    for row in rows:
        async with database.tenant(row.tenant_id) as session:
            export = await session.get(Export, row.id)
        for key in export.storage_keys if export else ():
            await store.delete(key)
        async with database.tenant(row.tenant_id) as session:
            await session.execute(delete(Export).where(Export.id == row.id))
        log.info("export.expired", extra={"tenant_id": str(row.tenant_id), "export_id": str(row.id)})
