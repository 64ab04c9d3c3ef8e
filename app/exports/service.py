"""Asking for an export, and who may see it."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Select, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.broker import Broker
from app.db import after_commit, now, uuid7
from app.errors import NotFound
from app.exports.models import IS_OPEN, OPEN, Export, ExportScope, ExportStatus
from app.identity import audit
from app.identity.audit import Action, AuditEntry, Author, TargetType
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.storage import keys

BUILD = "build_export"
"""The worker's task."""
KEPT = timedelta(hours=24)


async def request(session: AsyncSession, broker: Broker, actor: Actor, scope: ExportScope) -> Export:
    """A new export, or the actor's open one of this scope. Raises Forbidden."""
    if scope == ExportScope.TENANT:
        actor.require(Permission.EXPORT_TENANT)
    export_id = uuid7()
    statement = insert(Export).values(
        id=export_id,
        tenant_id=actor.tenant_id,
        user_id=actor.user_id,
        scope=scope,
        # When an export that failed is forgotten; its archive counts from its end.
        expires_at=now() + KEPT,
    )
    rows = await session.scalars(
        # An update, for the open one is returned by nothing else.
        statement.on_conflict_do_update(
            index_elements=[Export.tenant_id, Export.user_id, Export.scope],
            index_where=IS_OPEN,
            set_={"scope": statement.excluded.scope},
        ).returning(Export)
    )
    row = rows.one()
    if row.id == export_id:
        _record(session, actor, Action.EXPORT_CREATED, row, {"scope": [None, scope]})
        await session.flush()
        after_commit(session, lambda: enqueue(broker, row.tenant_id, row.id))
    return row


async def enqueue(broker: Broker, tenant_id: UUID, export_id: UUID) -> None:
    await broker.enqueue(BUILD, str(tenant_id), str(export_id), key=f"export:{export_id}")


def visible(actor: Actor) -> Select[Export]:
    """The actor's own and, for who may make them, the tenant's; without those whose time is over."""
    seen = (Export.scope == ExportScope.ME) & (Export.user_id == actor.user_id)
    if actor.role.covers(Permission.EXPORT_TENANT.role):
        seen = or_(seen, Export.scope == ExportScope.TENANT)
    return select(Export).where(seen, or_(Export.status.in_(OPEN), Export.expires_at > func.now()))


async def get(session: AsyncSession, actor: Actor, export_id: UUID) -> Export:
    row = await session.scalar(visible(actor).where(Export.id == export_id))
    if row is None:
        raise NotFound("export")
    return row


async def record_links(session: AsyncSession, actor: Actor, rows: Sequence[Export]) -> None:
    """Write down that the actor is given links to these archives, the first time for each."""
    completed = {row.id: row for row in rows if row.status == ExportStatus.COMPLETED}
    if not completed:
        return
    known = await session.scalars(
        select(AuditEntry.target_id).where(
            AuditEntry.user_id == actor.user_id,
            AuditEntry.action == Action.EXPORT_DOWNLOADED,
            AuditEntry.target_id.in_(completed),
        )
    )
    for export_id in completed.keys() - set(known):
        _record(session, actor, Action.EXPORT_DOWNLOADED, completed[export_id], {})
    await session.flush()


def _record(
    session: AsyncSession,
    actor: Actor,
    action: Action,
    row: Export,
    changes: dict[str, list[ExportScope | None]],
) -> None:
    audit.record(session, actor.tenant_id, Author.of(actor), action, TargetType.EXPORT, row.id, changes)


async def owned_keys(session: AsyncSession, found: Sequence[str]) -> set[str]:
    """For the reconcile run: those of `found`, of this tenant, that belong to an export."""
    export_ids = {keys.parse(key)[1] for key in found}
    rows = await session.scalars(select(Export).where(Export.id.in_(export_ids)))
    return {row.storage_key for row in rows if row.attempt}
