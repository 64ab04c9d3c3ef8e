"""Inviting people into a tenant."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.broker import Broker
from app.db import after_commit, now, uuid7
from app.error_codes import ErrorCode
from app.errors import Conflict, NotFound
from app.identity import audit, credentials
from app.identity.audit import Action, Author, TargetType
from app.identity.mails import SEND_INVITATION
from app.identity.models import Invitation, Membership, Role, User
from app.identity.permissions import Permission
from app.identity.service import Actor

LIFETIME = timedelta(days=7)


async def invite(
    session: AsyncSession, broker: Broker, signing_keys: Sequence[str], actor: Actor, *, email: str, role: Role
) -> tuple[Invitation, str]:
    """The invitation and its token; an earlier one for the same address is replaced. Raises Forbidden, Conflict."""
    if role == Role.OWNER:
        actor.require(Permission.MANAGE_OWNERS)
    address, invitation_id = email.lower(), uuid7()
    joined = select(Membership.user_id).join(User, User.id == Membership.user_id).where(User.email == address)
    if await session.scalar(joined) is not None:
        raise Conflict("This address is a member's already.", code=ErrorCode.ALREADY_MEMBER)
    # Derived: the task that mails it needs the id alone.
    token = credentials.derived(signing_keys[0], credentials.INVITATION_PREFIX, str(invitation_id))
    values = {
        "id": invitation_id,
        "email": address,
        "role": role,
        "secret_hash": credentials.fingerprint(token),
        "expires_at": now() + LIFETIME,
        "created_at": now(),
    }
    made = await session.scalars(
        insert(Invitation)
        .values(tenant_id=actor.tenant_id, **values)
        .on_conflict_do_update(index_elements=[Invitation.tenant_id, Invitation.email], set_=values)
        .returning(Invitation)
    )
    _record(session, actor, Action.INVITATION_CREATED, invitation_id, [None, role])
    after_commit(
        session,
        lambda: broker.enqueue(
            SEND_INVITATION, str(actor.tenant_id), str(invitation_id), key=f"invitation:{invitation_id}"
        ),
    )
    return made.one(), token


async def revoke(session: AsyncSession, actor: Actor, invitation_id: UUID) -> None:
    gone = await session.execute(delete(Invitation).where(Invitation.id == invitation_id).returning(Invitation.role))
    role = gone.scalar_one_or_none()
    if role is None:
        raise NotFound("invitation")
    _record(session, actor, Action.INVITATION_REVOKED, invitation_id, [role, None])
    await session.flush()


def _record(session: AsyncSession, actor: Actor, action: Action, invitation_id: UUID, role: list[Role | None]) -> None:
    # Without the address: an entry stays when its person is erased.
    audit.record(
        session, actor.tenant_id, Author.of(actor), action, TargetType.INVITATION, invitation_id, {"role": role}
    )
