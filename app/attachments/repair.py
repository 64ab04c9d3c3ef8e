"""Images that wait on this machine's disk, into the storage."""

from sqlalchemy import select

from app.attachments.ingest import mark_stored
from app.attachments.models import Attachment, AttachmentStatus
from app.attachments.spool import Spool
from app.db import Database
from app.storage.store import StorageError, Store


async def store_spooled(database: Database, store: Store, spool: Spool) -> list[Attachment]:
    """Store what waits in this machine's spool; returns the rows that are stored now."""
    stored: list[Attachment] = []
    for waiting in spool.waiting():
        async with database.tenant(waiting.tenant_id) as session:
            row = await session.scalar(select(Attachment).where(Attachment.id == waiting.object_id))
        if row is None or row.status != AttachmentStatus.PENDING:
            await spool.drop(waiting)
            continue
        try:
            await store.put(row.storage_key, await spool.read(waiting), mime_type=row.mime_type)
        except FileNotFoundError:
            # Another process of this machine was first.
            continue
        except StorageError:
            return stored
        if await mark_stored(database, store, row):
            stored.append(row)
        await spool.drop(waiting)
    return stored
