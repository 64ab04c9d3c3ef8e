"""List, look at, fetch and delete pictures; serve the bytes that a signed link names."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select

from app.attachments import service
from app.attachments.links import CurrentStore, Grant, ReaderLinks, verify
from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.attachments.schemas import AttachmentView, grant_for, view, views
from app.db import Database, database
from app.errors import Conflict, NotFound, Unavailable, id_of
from app.identity.actor import (
    AttachmentReader,
    AttachmentWriter,
    CurrentSettings,
    TenantSession,
)
from app.paging import Page, PageQuery, fetch_page
from app.storage.keys import content_disposition
from app.storage.store import ObjectMissing, StorageError, Store

router = APIRouter(prefix="/v1", tags=["attachments"])

# Whatever the bytes hold, a browser that opens them runs nothing and guesses no other type.
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Referrer-Policy": "no-referrer",
}


ObjectId = Annotated[UUID, id_of("attachment")]


@router.get("/attachments")
async def list_attachments(
    actor: AttachmentReader,
    session: TenantSession,
    links: ReaderLinks,
    query: Annotated[PageQuery, Depends()],
    kind: AttachmentKind | None = None,
) -> Page[AttachmentView]:
    statement = select(Attachment).where(Attachment.user_id == actor.user_id)
    if kind is not None:
        statement = statement.where(Attachment.kind == kind)
    rows, cursor = await fetch_page(session, statement, Attachment.id, query)
    return Page(data=await views(rows, links), next_cursor=cursor)


@router.get("/attachments/{object_id}")
async def get_attachment(
    object_id: ObjectId, actor: AttachmentReader, session: TenantSession, links: ReaderLinks
) -> AttachmentView:
    return await view(await service.get(session, actor, object_id), links)


@router.delete("/attachments/{object_id}", status_code=204)
async def delete_attachment(
    object_id: ObjectId, actor: AttachmentWriter, session: TenantSession, store: CurrentStore
) -> None:
    await service.remove(session, store, actor, object_id)


@router.get("/attachments/{object_id}/content", response_class=Response)
async def get_content(
    object_id: ObjectId,
    actor: AttachmentReader,
    database: Annotated[Database, Depends(database, scope="function")],
    links: ReaderLinks,
) -> Response:
    """A redirect to a fresh link of the store, or the bytes where the store cannot sign."""
    # Its own transaction: no connection is held while the store answers.
    async with database.tenant(actor.tenant_id) as session:
        row = await service.get(session, actor, object_id)
    if row.status != AttachmentStatus.STORED:
        raise Conflict("This picture is not stored; its `status` and `error` say why.", code="not_stored")
    grant = grant_for(row)
    link = await links.to(grant)
    if link.url.startswith(f"{links.base_url}/v1/files/"):
        return await _serve(links.store, grant, {"Cache-Control": "private, no-store", "ETag": f'"{row.sha256}"'})
    return RedirectResponse(link.url, 307, {"Cache-Control": "no-store"})


@router.get("/files/{token}", response_class=Response)
async def get_file(token: str, settings: CurrentSettings, store: CurrentStore) -> Response:
    """The bytes a link of ours names; the token is the permission."""
    grant = verify(settings, token)
    return await _serve(store, grant, {"Cache-Control": f"private, max-age={settings.link_ttl_seconds}"})


async def _serve(store: Store, grant: Grant, headers: dict[str, str]) -> Response:
    try:
        data = await store.get(grant.key)
    except ObjectMissing:
        raise NotFound("file") from None
    except StorageError:
        raise Unavailable("The picture store does not answer; try again in a moment.") from None
    disposition = content_disposition(grant.filename, inline=grant.inline)
    return Response(data, media_type=grant.mime_type, headers={**GUARDS, **headers, "Content-Disposition": disposition})
