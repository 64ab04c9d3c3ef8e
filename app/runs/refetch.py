"""Pictures that are paid for, not stored, and in no spool: taken again from the provider's stored responses."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import openai
from openai.types.responses.response_output_item import ImageGenerationCall
from sqlalchemy import func, select

from app.attachments import service as attachments
from app.attachments import variants
from app.attachments.models import Attachment, AttachmentStatus
from app.db import now
from app.images.inspect import UnreadableImage, decode, examine
from app.runs.models import Run
from app.runs.turn import Workshop

log = logging.getLogger(__name__)

RUNS_AT_ONCE = 40
READERS = 4
READ_SECONDS = 60.0
# How long the provider keeps a response.
KEPT = timedelta(days=30)
# The calls of one run follow each other by `previous_response_id`; the picture's is seldom far from the last.
RESPONSES_BACK = 10


class Lost(Exception):
    """The provider has nothing that would help; asking again is no use."""


async def refetch(shop: Workshop, lost: set[UUID]) -> None:
    """Store what ended runs left pending for longer than a lease; nothing is bought for it.

    Runs in `lost` are passed over; those whose pictures the provider no longer has are added to it. Raises a group of
    StorageErrors.
    """
    async with shop.database.identity() as session:
        oldest, newest = now() - KEPT, now() - timedelta(seconds=shop.settings.run_lease_seconds)
        found = await session.execute(
            select(Attachment.tenant_id, Attachment.run_id)
            .where(
                Attachment.status == AttachmentStatus.PENDING,
                Attachment.run_id.is_not(None),
                Attachment.run_id.not_in(lost),
                Attachment.created_at.between(oldest, newest),
            )
            .group_by(Attachment.tenant_id, Attachment.run_id)
            # Several workers do this at a time: each begins somewhere else.
            .order_by(func.random())
            .limit(RUNS_AT_ONCE)
        )
        rows = found.all()
    if not rows:
        return
    # No megabytes are fetched for a store that is away.
    await shop.store.prepare(create_bucket=False)
    turns = asyncio.Semaphore(READERS)
    async with asyncio.TaskGroup() as group:
        for row in rows:
            group.create_task(_heal(shop, turns, lost, row.tenant_id, row.run_id))


async def _heal(shop: Workshop, turns: asyncio.Semaphore, lost: set[UUID], tenant_id: UUID, run_id: UUID) -> None:
    async with turns:
        facts = {"tenant_id": str(tenant_id), "run_id": str(run_id)}
        try:
            async with asyncio.timeout(READ_SECONDS):
                await _store_pictures(shop, tenant_id, run_id)
        except Lost:
            lost.add(run_id)
            log.error("image.not_at_provider", extra=facts)
        except (openai.APIError, TimeoutError) as error:
            log.warning("image.refetch_failed", extra={**facts, "error": type(error).__name__})


async def _store_pictures(shop: Workshop, tenant_id: UUID, run_id: UUID) -> None:
    async with shop.database.tenant(tenant_id) as session:
        run = await session.get(Run, run_id)
        found = await session.scalars(
            select(Attachment).where(Attachment.run_id == run_id, Attachment.status == AttachmentStatus.PENDING)
        )
        rows = {row.tool_call_id: row for row in found}
    if run is None or not run.status.ended:
        return
    async for item in _drawn(shop, run):
        row = rows.get(item.id)
        if row is not None and await _store(shop, row, item.result or ""):
            del rows[item.id]
        if not rows:
            return
    raise Lost


async def _drawn(shop: Workshop, run: Run) -> AsyncIterator[ImageGenerationCall]:
    """The pictures in the run's stored responses, the last response first."""
    response_id = run.response_id
    for _ in range(RESPONSES_BACK):
        if response_id is None:
            return
        try:
            response = await shop.client.responses.retrieve(response_id)
        except openai.NotFoundError:
            return
        for item in response.output:
            if isinstance(item, ImageGenerationCall):
                yield item
        response_id = response.previous_response_id


async def _store(shop: Workshop, row: Attachment, base64: str) -> bool:
    """False where these are not the bytes that the row tells of."""
    try:
        picture = await examine(await decode(base64))
    except UnreadableImage:
        return False
    if picture.sha256 != row.sha256:
        return False
    await shop.store.put(row.storage_key, picture.data, mime_type=row.mime_type)
    await attachments.mark_stored(shop.database, row.tenant_id, row.id)
    log.info("image.refetched", extra={"tenant_id": str(row.tenant_id), "object_id": str(row.id)})
    await variants.request(shop.broker, row.tenant_id, row.id)
    return True
