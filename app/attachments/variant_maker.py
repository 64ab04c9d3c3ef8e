"""Makes the thumbnails of a stored image and stores them."""

import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Text, Uuid, bindparam, select, update
from sqlalchemy.dialects.postgresql import JSONB

from app.attachments.models import Attachment, AttachmentStatus
from app.attachments.variants import stored_keys
from app.compiled import CompiledStatement
from app.db import Database
from app.images import copies
from app.images.copies import Thumbnail
from app.images.inspect import UnreadableImage
from app.images.thumbnails import make_thumbnails
from app.storage import keys
from app.storage.store import ObjectMissing, Store

log = logging.getLogger(__name__)


async def make(database: Database, store: Store, tenant_id: UUID, object_id: UUID) -> UUID | None:
    """Store the thumbnails, then update the row; safe to repeat, also concurrently.

    Returns the run that drew the image, None where nothing was made or no run drew it. Raises StorageError, and leaves
    the row untried, where the store does not answer.
    """
    row, named = await _find(database, tenant_id, object_id), False
    try:
        if row is not None and row.status == AttachmentStatus.STORED and row.variants is None:
            named = await _complete(database, store, row)
            return row.run_id
    finally:
        # Unless its row names them, the image may have been deleted meanwhile, and nobody else would delete them.
        if not named and await _find(database, tenant_id, object_id) is None:
            for key in stored_keys(tenant_id, object_id, None):
                await store.delete(key)
    return None


async def _find(database: Database, tenant_id: UUID, object_id: UUID) -> Attachment | None:
    async with database.tenant(tenant_id) as session:
        return (await _FIND.execute(session, {"object_id": object_id})).scalar()


_IS_IT = Attachment.id == bindparam("object_id", type_=Uuid)
_FIND = CompiledStatement[Attachment](select(Attachment).where(_IS_IT), Attachment)
_COMPLETE = CompiledStatement[UUID](
    update(Attachment)
    .where(_IS_IT, Attachment.status == AttachmentStatus.STORED, Attachment.variants.is_(None))
    .values(variants=bindparam("variants", type_=JSONB), blurhash=bindparam("blurhash", type_=Text))
    .returning(Attachment.id)
)


async def _complete(database: Database, store: Store, row: Attachment) -> bool:
    """Whether the row names the thumbnails now; whoever deletes it later deletes them."""
    made, blurhash = await _copies(store, row)
    variants: list[dict[str, Any]] = []
    for copy in made:
        key = keys.variant_key(row.tenant_id, row.id, copy.width)
        await store.put(key, copy.data, mime_type=copies.MIME_TYPE)
        facts = {"width": copy.width, "height": copy.height, "size_bytes": len(copy.data), "storage_key": key}
        variants.append(facts)
    async with database.tenant(row.tenant_id) as session:
        given = {"object_id": row.id, "variants": variants, "blurhash": blurhash}
        return (await _COMPLETE.execute(session, given)).one_or_none() is not None


async def _copies(store: Store, row: Attachment) -> tuple[Sequence[Thumbnail], str | None]:
    """None at all of what cannot be drawn here: the row then says so, and is not tried again."""
    if row.mime_type not in copies.RASTER_TYPES:
        return [], None
    try:
        made = await make_thumbnails(await store.get(row.storage_key))
    except (ObjectMissing, UnreadableImage) as error:
        facts = {name: str(getattr(row, name)) for name in ("tenant_id", "user_id", "run_id") if getattr(row, name)}
        facts |= {"object_id": str(row.id), "error": str(error)}
        log.error("variants.impossible", extra=facts)
        return [], None
    return made.images, made.blurhash
