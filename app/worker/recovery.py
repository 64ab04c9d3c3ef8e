"""Recovers images that are paid for, not stored, and in no spool: from the provider's stored responses."""

import asyncio
import logging
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, select

from app.attachments import variants
from app.attachments.ingest import mark_stored
from app.attachments.models import Attachment, AttachmentStatus
from app.db import now
from app.images.inspect import UnreadableImage, examine
from app.provider.errors import ProviderError
from app.runs.models import Run
from app.worker.context import WorkerContext

log = logging.getLogger(__name__)

RUNS_AT_ONCE = 40
READERS = 4
READ_SECONDS = 60.0
# How long the provider keeps a response.
PROVIDER_KEEPS = timedelta(days=30)


class Unrecoverable(Exception):
    """The provider no longer has the images; a retry is no use."""


async def recover_images(ctx: WorkerContext, unrecoverable: set[UUID]) -> None:
    """Store images that ended runs left pending for longer than a lease; nothing is bought for it.

    Runs in `unrecoverable` are skipped; those whose images the provider no longer has are added to it. Raises a group
    of StorageErrors.
    """
    async with ctx.database.identity() as session:
        oldest, newest = now() - PROVIDER_KEEPS, now() - timedelta(seconds=ctx.settings.run_lease_seconds)
        found = await session.execute(
            select(Attachment.tenant_id, Attachment.run_id)
            .where(
                Attachment.status == AttachmentStatus.PENDING,
                Attachment.run_id.is_not(None),
                Attachment.run_id.not_in(unrecoverable),
                Attachment.created_at.between(oldest, newest),
            )
            .group_by(Attachment.tenant_id, Attachment.run_id)
            # Several workers do this at a time: each begins with other runs.
            .order_by(func.random())
            .limit(RUNS_AT_ONCE)
        )
        rows = found.all()
    if not rows:
        return
    # Fetch no megabytes for a store that is unavailable.
    await ctx.store.prepare(create_bucket=False)
    readers = asyncio.Semaphore(READERS)
    async with asyncio.TaskGroup() as group:
        for row in rows:
            group.create_task(_recover(ctx, readers, unrecoverable, row.tenant_id, row.run_id))


async def _recover(
    ctx: WorkerContext, readers: asyncio.Semaphore, unrecoverable: set[UUID], tenant_id: UUID, run_id: UUID
) -> None:
    async with readers:
        fields = {"tenant_id": str(tenant_id), "run_id": str(run_id)}
        try:
            async with asyncio.timeout(READ_SECONDS):
                await _store_images(ctx, tenant_id, run_id)
        except Unrecoverable:
            unrecoverable.add(run_id)
            log.error("image.not_at_provider", extra=fields)
        except (ProviderError, TimeoutError) as error:
            log.warning("image.recovery_failed", extra={**fields, "error": type(error).__name__})


async def _store_images(ctx: WorkerContext, tenant_id: UUID, run_id: UUID) -> None:
    async with ctx.database.tenant(tenant_id) as session:
        run = await session.get(Run, run_id)
        found = await session.scalars(
            select(Attachment).where(Attachment.run_id == run_id, Attachment.status == AttachmentStatus.PENDING)
        )
        rows = {row.tool_call_id: row for row in found}
    if run is None or not run.status.ended:
        return
    if run.response_id is None:
        raise Unrecoverable
    async for image in ctx.provider.images_of(run.response_id):
        row = rows.get(image.tool_call_id)
        if row is not None and await _store(ctx, row, image.content.data):
            del rows[image.tool_call_id]
        if not rows:
            return
    raise Unrecoverable


async def _store(ctx: WorkerContext, row: Attachment, data: bytes | None) -> bool:
    """False where these are not the bytes that the row describes."""
    try:
        image = await examine(data or b"")
    except UnreadableImage:
        return False
    if image.sha256 != row.sha256:
        return False
    await ctx.store.put(row.storage_key, image.data, mime_type=row.mime_type)
    await mark_stored(ctx.database, row.tenant_id, row.id)
    log.info("image.recovered", extra={"tenant_id": str(row.tenant_id), "object_id": str(row.id)})
    await variants.request(ctx.broker, row.tenant_id, row.id)
    return True
