"""Images put straight into the database and the store, past every check of what they are."""

import hashlib
from typing import Any, cast
from uuid import UUID

from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.db import Database, uuid7
from app.storage.keys import upload_key
from app.storage.store import Store
from tests.app_server import ApiUser, AppServer


async def insert_attachment(
    server: AppServer, owner: ApiUser, data: bytes, *, mime_type: str, filename: str
) -> dict[str, Any]:
    """A stored attachment, whose row says `mime_type` whatever the bytes are; as the owner reads it."""
    object_id, tenant_id = uuid7(), UUID(owner.signed_up["tenant"]["id"])
    row = Attachment(
        id=object_id,
        tenant_id=tenant_id,
        user_id=UUID(owner.signed_up["user"]["id"]),
        kind=AttachmentKind.UPLOAD,
        status=AttachmentStatus.STORED,
        filename=filename,
        mime_type=mime_type,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        storage_key=upload_key(tenant_id, object_id, "bin"),
    )
    await cast(Store, server.uvicorn.app.state.store).put(row.storage_key, data, mime_type=mime_type)
    assert server.settings.database_url
    database = Database(server.settings.database_url.get_secret_value(), pool_size=1)
    async with database.tenant(tenant_id) as session:
        session.add(row)
    await database.close()
    answer = owner.http.get(f"/v1/attachments/{object_id}")
    assert answer.status_code == 200, answer.text
    return cast(dict[str, Any], answer.json())
