"""The thumbnails (variants) of a stored image: requested, and requested again where they are missing; their keys."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select

from app.attachments.models import Attachment, AttachmentStatus
from app.broker import Broker
from app.db import Database, now
from app.images import copies
from app.storage import keys

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


def stored_keys(tenant_id: UUID, object_id: UUID, variants: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """The keys of an image's variants; of every possible variant where its row has none yet."""
    if variants is not None:
        return [str(variant["storage_key"]) for variant in variants]
    return [keys.variant_key(tenant_id, object_id, width) for width in copies.WIDTHS]
