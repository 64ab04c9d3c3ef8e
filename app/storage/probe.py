"""Whether a store does what it is for: one small object is written, read and deleted."""

import secrets
from uuid import UUID

from app.storage.keys import upload_key
from app.storage.store import StorageError, Store

# No tenant's: what is left of a check that was cut short is an orphan, which reconcile deletes.
NOBODY = UUID(int=0)


async def write_read_delete(store: Store) -> None:
    """Raises StorageError with the fix in its message."""
    key = upload_key(NOBODY, UUID(bytes=secrets.token_bytes(16)), "txt")
    data = secrets.token_bytes(64)
    await store.prepare(create_bucket=False)
    await store.put(key, data, mime_type="text/plain")
    try:
        if await store.get(key) != data:
            raise StorageError("The storage returned other bytes than were written: it cannot be trusted with images.")
    finally:
        await store.delete(key)
