"""Ask for an export and fetch its archive."""

from typing import Annotated
from uuid import UUID

from fastapi import Response

from app.attachments.links import ReaderLinks
from app.broker import Broker
from app.db import CurrentDatabase, from_state
from app.errors import id_of
from app.exports import service
from app.exports.models import Export
from app.exports.schemas import ExportPage, ExportView, NewExport
from app.identity.actor import TenantSession, may, may_apart
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.openapi import Router, sends
from app.paging import Paging, fetch_page

router = Router(prefix="/v1", tags=["exports"])

ExportId = Annotated[UUID, id_of("export")]


@router.post("/exports", status_code=202, responses={202: sends("Location")})
async def create_export(
    body: NewExport,
    response: Response,
    actor: Annotated[Actor, may(Permission.EXPORT_OWN)],
    session: TenantSession,
    broker: Annotated[Broker, from_state("broker")],
    links: ReaderLinks,
) -> ExportView:
    """Export what is yours, or everything of the tenant.

    A zip with rows as JSON lines and every image, byte for byte; `tenant` needs the role owner. It is gone after 24
    hours, or once the caller's next of this scope is complete; while one of them is open, the answer is that one.
    """
    row = await service.request(session, broker, actor, body.scope)
    response.headers["Location"] = f"/v1/exports/{row.id}"
    return await ExportView.of(row, links)


@router.get("/exports")
async def list_exports(
    actor: Annotated[Actor, may_apart(Permission.EXPORT_OWN)],
    database: CurrentDatabase,
    links: ReaderLinks,
    query: Paging,
) -> ExportPage:
    """List exports.

    Newest first: the caller's own, and for an owner those of the tenant.
    """
    # Its own transaction: no connection is held while the store signs links.
    async with database.tenant(actor.tenant_id) as session:
        rows, cursor = await fetch_page(session, service.visible(actor), Export.id, query)
        await service.record_links(session, actor, rows)
    return ExportPage(data=[await ExportView.of(row, links) for row in rows], next_cursor=cursor)


@router.get("/exports/{export_id}")
async def get_export(
    export_id: ExportId,
    actor: Annotated[Actor, may_apart(Permission.EXPORT_OWN)],
    database: CurrentDatabase,
    links: ReaderLinks,
) -> ExportView:
    """Get an export.

    Its `url` is a fresh link to the archive, a download that is kept for 24 hours.
    """
    async with database.tenant(actor.tenant_id) as session:
        row = await service.get(session, actor, export_id)
        await service.record_links(session, actor, [row])
    return await ExportView.of(row, links)
