"""The worker's task that writes an export's archive, and the sweep that repeats it where a worker was lost."""

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from app.attachments.file_tokens import ARCHIVE_TYPE
from app.errors import CONNECTION_FAULTS
from app.exports import archive, lease
from app.exports.models import Export
from app.exports.service import enqueue
from app.storage.store import StorageError
from app.worker.context import WorkerContext

log = logging.getLogger(__name__)

_HASHED_AT_ONCE = 1024**2
# What another attempt may overcome: a full disk is an OSError.
FAULTS = (*CONNECTION_FAULTS, StorageError, SQLAlchemyError, OSError)


def export_tasks(ctx: WorkerContext) -> list[Callable[..., Awaitable[None]]]:
    one_at_a_time = asyncio.Lock()

    async def build_export(tenant_id: str, export_id: str) -> None:
        if one_at_a_time.locked():
            # Waiting here would take a slot from other tasks; the sweep comes again.
            return
        async with one_at_a_time:
            export = await lease.claim(
                ctx.database, UUID(tenant_id), UUID(export_id), lease_seconds=ctx.settings.run_lease_seconds
            )
            if export is not None:
                await _hold(ctx, export)

    return [build_export]


async def sweep(ctx: WorkerContext) -> None:
    """Exports that nobody writes, and archives whose time is over."""
    for tenant_id, export_id in await lease.claimable(ctx.database):
        await enqueue(ctx.broker, tenant_id, export_id)
    try:
        await lease.delete_expired(ctx.database, ctx.store)
    except StorageError as error:
        log.warning("export.not_deleted", extra={"error": str(error)})


async def _hold(ctx: WorkerContext, export: Export) -> None:
    """Build it, until that is done, the lease is lost, or the worker must stop."""
    building = asyncio.create_task(_build(ctx, export))
    renewing = asyncio.create_task(lease.keep_renewing(ctx.database, export, ctx.settings.run_lease_seconds))
    stopping = asyncio.create_task(ctx.stopping.wait())
    tasks = (building, renewing, stopping)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    fields = {**lease.facts_of(export), "attempt": export.attempt}
    if building.cancelled():
        log.info("export.released", extra=fields)
        # Changes nothing where the lease is lost.
        await lease.release(ctx.database, export)
    elif error := building.exception():
        unknown = None if isinstance(error, FAULTS) else error
        log.warning("export.broken_off", extra={**fields, "error": type(error).__name__}, exc_info=unknown)
        await lease.postpone(ctx.database, export)


async def _build(ctx: WorkerContext, export: Export) -> None:
    directory = ctx.settings.data_dir / "exports"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Without a name: a killed worker leaves nothing behind.
    with TemporaryFile(dir=directory) as file:
        try:
            await archive.write(ctx.database, ctx.store, export, file, directory)
            size_bytes, sha256 = await asyncio.to_thread(_measure, file)
            await ctx.store.put(export.storage_key, Path(f"/dev/fd/{file.fileno()}"), mime_type=ARCHIVE_TYPE)
        finally:
            # An upload that was given up ends with it, in its thread.
            os.ftruncate(file.fileno(), 0)
    # Where another attempt holds the export, what was put is an orphan, which the next reconcile run finds.
    if await lease.complete(ctx.database, export, size_bytes=size_bytes, sha256=sha256):
        log.info("export.completed", extra={**lease.facts_of(export), "size_bytes": size_bytes})


def _measure(file: IO[bytes]) -> tuple[int, str]:
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(_HASHED_AT_ONCE):
        digest.update(part)
    return file.tell(), digest.hexdigest()
