"""Tenants and their members: creating, changing roles, leaving; a tenant always has an owner."""

from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import enter_tenant, uuid7
from app.error_codes import ErrorCode
from app.errors import Conflict, Forbidden, NotFound
from app.identity import audit
from app.identity.audit import Action, Author, TargetType
from app.identity.models import Invitation, Membership, Role, Tenant, User
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.tenants.schemas import MemberView, TenantChange


async def create(session: AsyncSession, user_id: UUID, name: str, plan: str) -> Tenant:
    """A new tenant with this owner; begun as identity, the transaction ends in the tenant."""
    tenant = Tenant(id=uuid7(), name=name, plan=plan)
    session.add(tenant)
    await session.flush()
    session.add(Membership(tenant_id=tenant.id, user_id=user_id, role=Role.OWNER))
    await session.flush()
    await enter_tenant(session, tenant.id)
    author = Author.user(user_id)
    audit.record(session, tenant.id, author, Action.TENANT_CREATED, TargetType.TENANT, tenant.id)
    await session.flush()
    return tenant


async def change(session: AsyncSession, actor: Actor, change: TenantChange) -> Tenant:
    tenant = (await session.scalars(select(Tenant).where(Tenant.id == actor.tenant_id).with_for_update())).one()
    wanted = change.model_dump(exclude_unset=True)
    changes = {name: [getattr(tenant, name), value] for name, value in wanted.items() if getattr(tenant, name) != value}
    if changes:
        for name in changes:
            setattr(tenant, name, wanted[name])
        audit.record(session, tenant.id, Author.of(actor), Action.TENANT_UPDATED, TargetType.TENANT, tenant.id, changes)
        await session.flush()
    return tenant


async def members(session: AsyncSession, rows: Iterable[Membership]) -> list[MemberView]:
    """As other members see them."""
    by_id = {row.user_id: row for row in rows}
    found = await session.execute(select(User.id, User.email, User.name).where(User.id.in_(by_id)))
    users = {user.id: user for user in found}
    return [
        MemberView(
            user_id=user_id,
            email=users[user_id].email,
            name=users[user_id].name,
            role=row.role,
            created_at=row.created_at,
        )
        for user_id, row in by_id.items()
    ]


async def change_role(session: AsyncSession, actor: Actor, user_id: UUID, role: Role) -> MemberView:
    """Raises NotFound, Forbidden, and Conflict where no owner would be left."""
    member = await _locked(session, actor, user_id, Permission.MANAGE_MEMBERS, given=role)
    if member.role != role:
        changes = {"role": [member.role, role]}
        await session.execute(update(Membership).where(Membership.user_id == user_id).values(role=role))
        audit.record(
            session,
            actor.tenant_id,
            Author.of(actor),
            Action.MEMBER_ROLE_CHANGED,
            TargetType.USER,
            user_id,
            changes,
        )
        await session.flush()
    (view,) = await members(session, [Membership(user_id=user_id, role=role, created_at=member.created_at)])
    return view


async def remove_member(session: AsyncSession, actor: Actor, user_id: UUID, *, needs: Permission | None = None) -> None:
    """With their API keys; what they have made stays. Raises as `change_role`."""
    leaves = user_id == actor.user_id
    least = Permission.LEAVE if leaves else Permission.MANAGE_MEMBERS
    member = await _locked(session, actor, user_id, needs or least)
    await session.execute(delete(Membership).where(Membership.user_id == user_id))
    action = Action.MEMBER_LEFT if leaves else Action.MEMBER_REMOVED
    changes = {"role": [member.role, None]}
    audit.record(session, actor.tenant_id, Author.of(actor), action, TargetType.USER, user_id, changes)
    await session.flush()


async def leave_for_good(session: AsyncSession, tenant_id: UUID, user_id: UUID) -> bool:
    """The user is being erased: False where nobody else belongs to the tenant. Raises Conflict as `change_role`."""
    # Whoever is just accepting one is waited for, and seen.
    await session.execute(select(Invitation.id).with_for_update())
    others = exists().where(Membership.tenant_id == tenant_id, Membership.user_id != user_id)
    if not await session.scalar(select(others)):
        return False
    await remove_member(session, Actor(user_id, tenant_id, Role.VIEWER), user_id)
    return True


async def _locked(
    session: AsyncSession, actor: Actor, user_id: UUID, permission: Permission, *, given: Role | None = None
) -> Membership:
    """The membership, which the actor may give the role `given`, or take away.

    All owners are locked in one order, so that of two who remove each other at the same moment the second one finds
    the first one's work done.
    """
    rows = await session.scalars(
        select(Membership)
        .where(or_(Membership.role == Role.OWNER, Membership.user_id.in_((user_id, actor.user_id))))
        .order_by(Membership.user_id)
        .with_for_update()
    )
    locked = {row.user_id: row for row in rows}
    others_own = any(row.role == Role.OWNER for row in locked.values() if row.user_id != user_id)
    loses_owner = user_id in locked and locked[user_id].role == Role.OWNER != given and not others_own
    last = Conflict("This is the tenant's last owner: make another member owner first.", code=ErrorCode.LAST_OWNER)
    if loses_owner and actor.role == Role.OWNER:
        # The other one may just have taken this actor's role.
        raise last
    if actor.user_id not in locked:
        raise Forbidden("You are not a member of this tenant any more.")
    if user_id not in locked:
        raise NotFound("member")
    member, current = locked[user_id], replace(actor, role=locked[actor.user_id].role)
    current.require(permission)
    leaves_itself = user_id == actor.user_id and given is None
    if Role.OWNER in (member.role, given) and not leaves_itself:
        current.require(Permission.MANAGE_OWNERS)
    if loses_owner:
        raise last
    return member
