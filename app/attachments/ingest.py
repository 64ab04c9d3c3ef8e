"""Images into storage: the row first, then the object, then the row says that it is stored."""

import logging
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import Uuid, bindparam, case, delete, select, update

from app import inserts, metrics, traces
from app.attachments.models import Attachment, AttachmentError, AttachmentKind, AttachmentStatus
from app.attachments.spool import Spool
from app.compiled import CompiledStatement
from app.db import Database, retry_while_unavailable, uuid7
from app.images.cleaning import Cleaned
from app.images.formats import KINDS
from app.images.inspect import ImageFacts
from app.storage import keys
from app.storage.outage import Outage
from app.storage.store import StorageError, Store

log = logging.getLogger(__name__)

# The end of the text waits no longer for a store that does not answer.
PUT_SECONDS = 3.0


def new_attachment(
    facts: ImageFacts | Cleaned, *, kind: AttachmentKind, tenant_id: UUID, stem: str = "", **fields: Any
) -> Attachment:
    """A pending row for these bytes; `stem` is the file's name without extension, `fields` are further columns."""
    object_id = fields.pop("id", None) or uuid7()
    make_key = keys.image_key if kind == AttachmentKind.GENERATED else keys.upload_key
    default_stem = f"{fields.get('agent_key') or 'upload'}-{str(object_id)[-12:]}"
    return Attachment(
        id=object_id,
        tenant_id=tenant_id,
        kind=kind,
        status=AttachmentStatus.PENDING,
        filename=f"{stem or default_stem}.{facts.extension}",
        mime_type=facts.mime_type,
        width=facts.width or None,
        height=facts.height or None,
        storage_key=make_key(tenant_id, object_id, facts.extension),
        **fields,
    )


def failed_attachment(error: AttachmentError, *, mime_type: str, tenant_id: UUID, **fields: Any) -> Attachment:
    """A row for an image of which no bytes are kept; `mime_type` is what it would have been."""
    extension = next((kind.extension for kind in KINDS if kind.mime_type == mime_type), "png")
    facts = ImageFacts(mime_type, extension, 0, 0)
    row = new_attachment(facts, kind=AttachmentKind.GENERATED, tenant_id=tenant_id, **fields)
    row.status, row.error = AttachmentStatus.FAILED, error
    return row


async def store_image(
    database: Database, store: Store, spool: Spool, outage: Outage, row: Attachment, data: bytes
) -> Attachment:
    """Object -> row stored; where the store fails the inserted row stays pending and the bytes are spooled."""
    if row.status == AttachmentStatus.STORED:
        return row
    facts = {"easel.object_id": row.id, "easel.bytes": len(data), "easel.mime_type": row.mime_type}
    try:
        with traces.span("store image", facts, kind="client"):
            async with outage.watching(PUT_SECONDS):
                await store.put(row.storage_key, data, mime_type=row.mime_type)
    except (StorageError, TimeoutError) as error:
        log.error(
            "image.ingest_failed",
            extra={
                "tenant_id": str(row.tenant_id),
                "run_id": str(row.run_id),
                "tool_call_id": row.tool_call_id,
                "object_id": str(row.id),
                "error": str(error) or type(error).__name__,
            },
        )
        await spool.keep(row.tenant_id, row.id, data)
        return row
    await mark_stored(database, store, row)
    row.status = AttachmentStatus.STORED
    return row


@retry_while_unavailable
async def insert_once(database: Database, row: Attachment, *, replaces_failed: bool = False) -> Attachment:
    """The one row of a generated image: this one, or the one that an earlier attempt inserted.

    With `replaces_failed` its id may be that of a row without bytes, which goes.
    """
    async with database.tenant(row.tenant_id) as session:
        if replaces_failed:
            failed = (Attachment.id == row.id) & (Attachment.status == AttachmentStatus.FAILED)
            await session.execute(delete(Attachment).where(failed))
        if await inserts.insert_once(session, row, "tenant_id", "run_id", "tool_call_id", "sha256"):
            return row
        found = await session.scalars(
            select(Attachment).where(
                Attachment.run_id == row.run_id,
                Attachment.tool_call_id == row.tool_call_id,
                Attachment.sha256 == row.sha256,
            )
        )
        return found.one()


_ID, _PENDING = bindparam("object_id", type_=Uuid), Attachment.status == AttachmentStatus.PENDING
_STORED = case((_PENDING, AttachmentStatus.STORED), else_=Attachment.status)
_MARKED = update(Attachment).where(Attachment.id == _ID).values(status=_STORED).returning(Attachment.id)
_MARK_STORED = CompiledStatement(_MARKED)


@retry_while_unavailable
async def mark_stored(database: Database, store: Store, row: Attachment) -> bool:
    """False where the row was deleted meanwhile: its object goes, too, as nothing names it any more."""
    async with database.tenant(row.tenant_id) as session:
        is_there = (await _MARK_STORED.execute(session, {"object_id": row.id})).one_or_none() is not None
    if is_there:
        metrics.IMAGES_STORED.labels(row.kind).inc()
    else:
        with suppress(StorageError):
            await store.delete(row.storage_key)
    return is_there
