"""Reading the audit log."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Select, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.identity.audit import Action, AuditEntry
from app.identity.models import Membership, User
from app.tenants.schemas import AuditActor, AuditEntryView, AuditTarget


def selected(action: Action | None, actor_id: UUID | None, target_id: UUID | None) -> Select[AuditEntry]:
    wanted = {AuditEntry.action: action, AuditEntry.actor_id: actor_id, AuditEntry.target_id: target_id}
    return select(AuditEntry).where(*(column == value for column, value in wanted.items() if value is not None))


async def views(session: AsyncSession, rows: Sequence[AuditEntry]) -> list[AuditEntryView]:
    """With the addresses of those who have one still, and were not erased here."""
    ids = {row.user_id for row in rows if row.user_id is not None}
    erased = exists().where(AuditEntry.target_id == User.id, AuditEntry.action == Action.ERASURE_REQUESTED)
    is_back = exists().where(Membership.user_id == User.id)
    found = await session.execute(select(User.id, User.email).where(User.id.in_(ids), or_(is_back, ~erased)))
    emails = {user.id: user.email for user in found}
    return [
        AuditEntryView(
            id=row.id,
            at=row.created_at,
            actor=AuditActor(type=row.actor_type, id=row.actor_id, email=row.user_id and emails.get(row.user_id)),
            action=row.action,
            target=AuditTarget(type=row.target_type, id=row.target_id),
            changes=row.changes,
            request_id=row.request_id,
            ip=row.ip,
        )
        for row in rows
    ]
