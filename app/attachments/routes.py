"""Upload, list, look at and delete images."""

from collections.abc import AsyncIterator
from typing import Annotated, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.requests import ClientDisconnect

from app.attachments import service, uploads
from app.attachments.links import CurrentStore, ReaderLinks
from app.attachments.models import Attachment, AttachmentKind
from app.attachments.schemas import AttachmentView, views
from app.broker import Broker
from app.db import Database, database
from app.errors import Invalid, id_of
from app.identity.actor import AttachmentReader, AttachmentWriter, CurrentSettings, TenantSession
from app.paging import Page, PageQuery, fetch_page

router = APIRouter(prefix="/v1", tags=["attachments"])

ObjectId = Annotated[UUID, id_of("attachment")]


@router.post("/attachments", status_code=201, openapi_extra=uploads.FORM)
async def upload_attachment(
    request: Request,
    response: Response,
    actor: AttachmentWriter,
    database: Annotated[Database, Depends(database, scope="function")],
    settings: CurrentSettings,
    links: ReaderLinks,
) -> AttachmentView:
    """Store an image: it is decoded, set upright and encoded anew, so that nothing but its pixels is stored."""
    form = uploads.Form(request.headers.get("content-type", ""), _body_of(request))
    broker = cast(Broker, request.app.state.broker)
    row = await uploads.store_upload(database, broker, links.store, settings, actor, form)
    response.headers["Location"] = f"/v1/attachments/{row.id}"
    return await AttachmentView.of(row).with_links(links)


async def _body_of(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise Invalid("The connection ended before the body did.") from None


@router.get("/attachments")
async def list_attachments(
    actor: AttachmentReader,
    database: Annotated[Database, Depends(database, scope="function")],
    links: ReaderLinks,
    query: Annotated[PageQuery, Depends()],
    kind: AttachmentKind | None = None,
    q: Annotated[str | None, Query(max_length=200)] = None,
    agent_key: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$")] = None,
) -> Page[AttachmentView]:
    """Newest first; `q` finds images by the first letters of words in their prompts: all of its words must match."""
    # Its own transaction: no connection is held while the store signs links.
    async with database.tenant(actor.tenant_id) as session:
        statement = service.gallery(actor, kind=kind, q=q, agent_key=agent_key)
        rows, cursor = await fetch_page(session, statement, Attachment.id, query)
    return Page(data=await views(rows, links), next_cursor=cursor)


@router.get("/attachments/{object_id}")
async def get_attachment(
    object_id: ObjectId, actor: AttachmentReader, session: TenantSession, links: ReaderLinks
) -> AttachmentView:
    return await AttachmentView.of(await service.get(session, actor, object_id)).with_links(links)


@router.delete("/attachments/{object_id}", status_code=204)
async def delete_attachment(
    object_id: ObjectId, actor: AttachmentWriter, session: TenantSession, store: CurrentStore
) -> None:
    await service.remove(session, store, actor, object_id)
