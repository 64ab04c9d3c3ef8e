"""Recovers images that are paid for, not stored or not recorded, and in no spool: from the provider's responses."""

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, exists, func, or_, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from app.attachments import variants
from app.attachments.ingest import mark_stored
from app.attachments.models import Attachment, AttachmentStatus
from app.images.inspect import Decoded, UnreadableImage, examine
from app.images.reduce import fit
from app.logs import tag
from app.provider.errors import ProviderError
from app.provider.observers import GeneratedImage
from app.runs.models import Run
from app.runs.run_log import tags_of
from app.settings import Settings
from app.usage.ledger import cost_without_image
from app.worker import model_input
from app.worker.context import WorkerContext
from app.worker.event_writer import EventWriter
from app.worker.image_options import image_options_of
from app.worker.images import REDUCED_FROM, RunImages

log = logging.getLogger(__name__)

RUNS_AT_ONCE = 40
READERS = 4
READ_SECONDS = 60.0
# After a failure a run is left alone for this time, after each further one for twice as long as before.
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 600.0
# How long the provider keeps a response.
PROVIDER_KEEPS = timedelta(days=30)


class Unrecoverable(Exception):
    """The provider no longer has the images; a retry is no use."""


class Backoff:
    """Which runs are left alone for now; those whose images the provider no longer has for ever."""

    def __init__(self) -> None:
        # Until when, and for how long.
        self._pauses: dict[UUID, tuple[float, float]] = {}

    def paused(self) -> Sequence[UUID]:
        moment = time.monotonic()
        return [run_id for run_id, (until, _) in self._pauses.items() if until > moment]

    def pause(self, run_id: UUID) -> None:
        _, before = self._pauses.get(run_id, (0.0, FIRST_PAUSE_SECONDS / 2))
        seconds = min(before * 2, LONGEST_PAUSE_SECONDS)
        self._pauses[run_id] = (time.monotonic() + seconds, seconds)

    def give_up(self, run_id: UUID) -> None:
        self._pauses[run_id] = (math.inf, math.inf)

    def forget(self, run_id: UUID) -> None:
        self._pauses.pop(run_id, None)


def _left_images(settings: Settings) -> tuple[Select[UUID, UUID | None], Select[UUID, UUID]]:
    """Tenants and runs of images that are pending for longer than a lease, and of those without a row."""
    oldest = func.now() - PROVIDER_KEEPS
    pending = select(Attachment.tenant_id, Attachment.run_id).where(
        Attachment.status == AttachmentStatus.PENDING,
        Attachment.run_id.is_not(None),
        Attachment.created_at.between(oldest, func.now() - timedelta(seconds=settings.run_lease_seconds)),
    )
    unrecorded = select(Run.tenant_id, Run.id).where(
        # Written out, as the condition of an index.
        Run.unrecorded_images != text("'{}'"),
        Run.created_at > oldest,
    )
    return pending, unrecorded


def images_left(settings: Settings) -> ColumnElement[bool]:
    """Whether there is anything to recover."""
    return or_(*(left.exists() for left in _left_images(settings)))


async def recover_images(ctx: WorkerContext, backoff: Backoff) -> None:
    """Store images that ended runs left pending for longer than a lease, or without a row; nothing is bought for it.

    Raises a group of StorageErrors.
    """
    pending, unrecorded = _left_images(ctx.settings)
    both = pending.union(unrecorded).subquery()
    async with ctx.database.identity() as session:
        found = await session.execute(
            select(both.c.tenant_id, both.c.run_id)
            .where(both.c.run_id.not_in(backoff.paused()))
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
            group.create_task(_recover(ctx, readers, backoff, row.tenant_id, row.run_id))


async def _recover(
    ctx: WorkerContext, readers: asyncio.Semaphore, backoff: Backoff, tenant_id: UUID, run_id: UUID
) -> None:
    async with readers:
        tag(tenant_id=tenant_id, run_id=run_id)
        try:
            async with asyncio.timeout(READ_SECONDS):
                await _store_images(ctx, tenant_id, run_id)
            backoff.forget(run_id)
        except Unrecoverable:
            backoff.give_up(run_id)
            log.error("image.not_at_provider")
        except (ProviderError, SQLAlchemyError, TimeoutError) as error:
            backoff.pause(run_id)
            log.warning("image.recovery_failed", extra={"error": type(error).__name__})


async def _store_images(ctx: WorkerContext, tenant_id: UUID, run_id: UUID) -> None:
    async with ctx.database.tenant(tenant_id) as session:
        run = await session.get(Run, run_id)
        found = await session.scalars(
            select(Attachment).where(Attachment.run_id == run_id, Attachment.status == AttachmentStatus.PENDING)
        )
        rows = list(found)
        request = await model_input.load(session, run, stores=False, already_sent=True) if run else None
    if run is None or request is None or not run.status.ended:
        return
    tag(**tags_of(run))
    if run.response_id is None:
        raise Unrecoverable
    # No event is written any more.
    events = EventWriter(ctx.broker.events, run.id, run.attempt, [])
    images = RunImages(ctx, run, events, image_options_of(ctx.settings, ctx.registry, run))
    images.rows.prompt, images.rows.parent_object_id = request.message.text, request.parent_object_id
    images.rows.promised = await _promised(ctx, run)
    unrecorded = set(run.unrecorded_images)
    wanted = {row.tool_call_id for row in rows} | unrecorded
    async for image in ctx.provider.stored.images_of(run.response_id):
        if image.tool_call_id not in wanted:
            continue
        decoded = await _examined(image)
        for row in [row for row in rows if row.tool_call_id == image.tool_call_id]:
            if decoded is not None and await _store(ctx, row, decoded):
                rows.remove(row)
        if decoded is not None and image.tool_call_id in run.unrecorded_images:
            await _record(ctx, images, replace(image, agent_key=run.calling_agent or run.agent_key), decoded)
            unrecorded.discard(image.tool_call_id)
        if not rows and not run.unrecorded_images:
            return
    if rows or unrecorded:
        raise Unrecoverable
    async with ctx.database.tenant(tenant_id) as session:
        await session.execute(update(Run).where(Run.id == run_id).values(unrecorded_images=[]))


async def _promised(ctx: WorkerContext, run: Run) -> dict[str, UUID]:
    """The rows that stand for images without a row of their own, by tool call."""
    failed = (Attachment.run_id == run.id) & (Attachment.status == AttachmentStatus.FAILED)
    found = select(Attachment.tool_call_id, Attachment.id).where(
        failed, Attachment.sha256.is_(None), Attachment.tool_call_id.in_(run.unrecorded_images)
    )
    async with ctx.database.tenant(run.tenant_id) as session:
        return {row.tool_call_id: row.id for row in await session.execute(found)}


async def _examined(image: GeneratedImage) -> Decoded | None:
    try:
        return await examine(image.content.data or b"")
    except UnreadableImage:
        return None


async def _store(ctx: WorkerContext, row: Attachment, image: Decoded) -> bool:
    """False where these are not the bytes that the row describes."""
    if row.options.get(REDUCED_FROM) == len(image.data):
        image = await fit(image, ctx.settings.image_output_max_bytes) or image
    if image.sha256 != row.sha256:
        return False
    await ctx.store.put(row.storage_key, image.data, mime_type=row.mime_type)
    if await mark_stored(ctx.database, ctx.store, row):
        await _report(ctx, row)
    return True


async def _record(ctx: WorkerContext, images: RunImages, image: GeneratedImage, decoded: Decoded) -> None:
    """The row that is missing; there may be one after all, as the tool call may have brought two images."""
    row = await images.ingest(image, decoded)
    await _charge(ctx, row)
    if row.status == AttachmentStatus.STORED:
        await _report(ctx, row)


async def _charge(ctx: WorkerContext, row: Attachment) -> None:
    """With what was booked for the picture when it had no row."""
    if row.run_id is None or row.tool_call_id is None:
        return
    other = aliased(Attachment)
    async with ctx.database.tenant(row.tenant_id) as session:
        cost = await cost_without_image(session, row.run_id, row.tool_call_id)
        if cost.basis is not None:
            # Another image of its tool call may show it already.
            same = (other.run_id == row.run_id) & (other.tool_call_id == row.tool_call_id)
            shown = exists().where(same, other.cost_basis.is_not(None))
            charged = update(Attachment).where(Attachment.id == row.id, ~shown)
            await session.execute(charged.values(cost_nano=cost.nano, cost_basis=cost.basis))


async def _report(ctx: WorkerContext, row: Attachment) -> None:
    log.info("image.recovered", extra={"object_id": str(row.id)})
    await variants.request(ctx.broker, row.tenant_id, row.id)
