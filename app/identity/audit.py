"""The audit log: who did what to whom, written in the transaction of the change and never changed."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified, enter_tenant
from app.identity.models import Membership
from app.identity.service import Actor
from app.request_context import current_request


class ActorType(StrEnum):
    USER = "user"
    API_KEY = "api_key"  # pragma: allowlist secret
    OPERATOR = "operator"
    SYSTEM = "system"


class Action(StrEnum):
    MEMBER_JOINED = "member.joined"
    MEMBER_ROLE_CHANGED = "member.role_changed"
    MEMBER_REMOVED = "member.removed"
    MEMBER_LEFT = "member.left"
    INVITATION_CREATED = "invitation.created"
    INVITATION_REVOKED = "invitation.revoked"
    API_KEY_CREATED = "api_key.created"  # pragma: allowlist secret
    API_KEY_REVOKED = "api_key.revoked"  # pragma: allowlist secret
    TENANT_CREATED = "tenant.created"
    TENANT_UPDATED = "tenant.updated"
    TENANT_PLAN_CHANGED = "tenant.plan_changed"
    TENANT_SUSPENDED = "tenant.suspended"
    TENANT_RESUMED = "tenant.resumed"
    CONVERSATION_SHARED = "conversation.shared"
    CONVERSATION_UNSHARED = "conversation.unshared"
    CONVERSATION_DELETED = "conversation.deleted"
    EXPORT_CREATED = "export.created"
    EXPORT_DOWNLOADED = "export.downloaded"
    ERASURE_REQUESTED = "erasure.requested"
    ERASURE_COMPLETED = "erasure.completed"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105  # pragma: allowlist secret
    PASSWORD_RESET_ISSUED = "password.reset_issued"  # noqa: S105  # pragma: allowlist secret
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"


class TargetType(StrEnum):
    API_KEY = "api_key"  # pragma: allowlist secret
    CONVERSATION = "conversation"
    EXPORT = "export"
    INVITATION = "invitation"
    TENANT = "tenant"
    USER = "user"


class AuditEntry(Identified, Base):
    """`actor_id` is a user's or a key's, `user_id` that user or the key's; `changes` is `{field: [before, after]}`.

    Addresses and names are not in it: they are looked up as it is read, so that who is erased is only an id here.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_tenant", "tenant_id", "id"),
        Index("ix_audit_entries_user", "tenant_id", "user_id"),
        Index(
            "ix_audit_entries_former",
            "target_id",
            postgresql_where=text("action IN ('member.removed', 'member.left')"),
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    actor_type: Mapped[ActorType] = mapped_column(EnumText(ActorType))
    actor_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    action: Mapped[Action] = mapped_column(EnumText(Action))
    target_type: Mapped[TargetType] = mapped_column(EnumText(TargetType))
    target_id: Mapped[UUID]
    changes: Mapped[dict[str, Any]] = mapped_column(default=dict)
    request_id: Mapped[str | None]
    ip: Mapped[str | None]


@dataclass(frozen=True)
class Author:
    """Who is written down as the one who did it."""

    type: ActorType
    id: UUID | None = None
    user_id: UUID | None = None

    @classmethod
    def of(cls, actor: Actor) -> "Author":
        if actor.api_key_id is not None:
            return cls(ActorType.API_KEY, actor.api_key_id, actor.user_id)
        return cls.user(actor.user_id)

    @classmethod
    def user(cls, user_id: UUID) -> "Author":
        return cls(ActorType.USER, user_id, user_id)


OPERATOR = Author(ActorType.OPERATOR)
SYSTEM = Author(ActorType.SYSTEM)


def record(
    session: AsyncSession,
    tenant_id: UUID,
    author: Author,
    action: Action,
    target_type: TargetType,
    target_id: UUID,
    changes: dict[str, list[Any]] | None = None,
) -> None:
    """Add an entry to the transaction of the change, which must be the tenant's; no secret or text of users in it."""
    request = current_request()
    entry = AuditEntry(
        tenant_id=tenant_id,
        actor_type=author.type,
        actor_id=author.id,
        user_id=author.user_id,
        action=action,
        target_type=target_type,
        target_id=target_id,
        changes=changes or {},
        request_id=request.request_id,
        ip=request.ip,
    )
    session.add(entry)


async def record_of_user(
    session: AsyncSession,
    user_id: UUID,
    author: Author,
    action: Action,
    changes: dict[str, list[Any]] | None = None,
) -> None:
    """In each of the user's tenants, at the end of identity's transaction: nothing can be done as identity after it."""
    of_user = select(Membership.tenant_id).where(Membership.user_id == user_id).order_by(Membership.tenant_id)
    for tenant_id in (await session.scalars(of_user)).all():
        await enter_tenant(session, tenant_id)
        record(session, tenant_id, author, action, TargetType.USER, user_id, changes)
        await session.flush()
