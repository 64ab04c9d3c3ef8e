"""The thumbnails (variants) of a stored image: requested, made, stored, and requested again where they are missing."""

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from app.attachments.models import Attachment, AttachmentStatus
from app.broker import Broker
from app.db import Database, now
from app.images import thumbnails
from app.images.inspect import UnreadableImage
from app.images.thumbnails import Thumbnail
from app.storage import keys
from app.storage.store import ObjectMissing, Store

log = logging.getLogger(__name__)

MAKE = "make_variants"
# An image this old has lost its task, or its task waits behind others: a second task does no harm.
MISSED_AFTER = timedelta(minutes=1)
MISSED_AT_ONCE = 100


async def request(broker: Broker, tenant_id: UUID, object_id: UUID) -> None:
    await broker.enqueue(MAKE, str(tenant_id), str(object_id), key=f"variants:{object_id}")


async def request_missed(database: Database, broker: Broker) -> None:
    """Request the variants of stored images that no worker has tried, the oldest first."""
    async with database.identity() as session:
        found = await session.execute(
            select(Attachment.tenant_id, Attachment.id)
            .where(
                Attachment.status == AttachmentStatus.STORED,
                Attachment.variants.is_(None),
                Attachment.created_at < now() - MISSED_AFTER,
            )
            .order_by(Attachment.created_at)
            .limit(MISSED_AT_ONCE)
        )
        rows = found.all()
    for row in rows:
        await request(broker, row.tenant_id, row.id)


async def make(database: Database, store: Store, tenant_id: UUID, object_id: UUID) -> UUID | None:
    """Store the thumbnails, then update the row; safe to repeat, also concurrently.

    Returns the run that drew the image, None where nothing was made or no run drew it. Raises StorageError, and leaves
    the row untried, where the store does not answer.
    """
    row = await _find(database, tenant_id, object_id)
    try:
        if row is not None and row.status == AttachmentStatus.STORED and row.variants is None:
            await _complete(database, store, row)
            return row.run_id
    finally:
        # The image was deleted meanwhile: no row names these objects any more.
        if await _find(database, tenant_id, object_id) is None:
            for key in stored_keys(tenant_id, object_id, None):
                await store.delete(key)
    return None


async def _find(database: Database, tenant_id: UUID, object_id: UUID) -> Attachment | None:
    async with database.tenant(tenant_id) as session:
        return await session.get(Attachment, object_id)


async def _complete(database: Database, store: Store, row: Attachment) -> None:
    copies, blurhash = await _copies(store, row)
    variants: list[dict[str, Any]] = []
    for copy in copies:
        key = keys.variant_key(row.tenant_id, row.id, copy.width)
        await store.put(key, copy.data, mime_type=thumbnails.MIME_TYPE)
        facts = {"width": copy.width, "height": copy.height, "size_bytes": len(copy.data), "storage_key": key}
        variants.append(facts)
    async with database.tenant(row.tenant_id) as session:
        await session.execute(
            update(Attachment)
            .where(Attachment.id == row.id, Attachment.status == AttachmentStatus.STORED, Attachment.variants.is_(None))
            .values(variants=variants, blurhash=blurhash)
        )


async def _copies(store: Store, row: Attachment) -> tuple[Sequence[Thumbnail], str | None]:
    """None at all of what cannot be drawn here: the row then says so, and is not tried again."""
    if row.mime_type not in thumbnails.RASTER_TYPES:
        return [], None
    try:
        made = await thumbnails.make_thumbnails(await store.get(row.storage_key))
    except (ObjectMissing, UnreadableImage) as error:
        facts = {name: str(getattr(row, name)) for name in ("tenant_id", "user_id", "run_id") if getattr(row, name)}
        facts |= {"object_id": str(row.id), "error": str(error)}
        log.error("variants.impossible", extra=facts)
        return [], None
    return made.images, made.blurhash


def stored_keys(tenant_id: UUID, object_id: UUID, variants: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The keys of an image's variants; of every possible variant where its row has none yet."""
    if variants is not None:
        return [str(variant["storage_key"]) for variant in variants]
    return [keys.variant_key(tenant_id, object_id, width) for width in thumbnails.WIDTHS]
