"""What the operator does to tenants, users and keys; written down as done by `operator`."""

from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import EaselError
from app.db import Database, enter_tenant, now
from app.identity import audit
from app.identity.audit import OPERATOR, Action, TargetType
from app.identity.models import ApiKey, Membership, Tenant, User
from app.usage import plans
from app.usage.models import Plan

Found = dict[str, object]


class UnknownThing(EaselError):
    """The operator named something that is not there."""


async def list_tenants(database: Database) -> list[Found]:
    members = select(func.count()).where(Membership.tenant_id == Tenant.id).scalar_subquery()
    statement = select(Tenant, members.label("members")).order_by(Tenant.id)
    async with database.identity() as session:
        rows = await session.execute(statement)
        return [{**_tenant(row.Tenant), "members": row.members} for row in rows]


async def show_tenant(database: Database, tenant_id: UUID) -> tuple[Found, list[Found]]:
    """The tenant and its members."""
    async with database.identity() as session:
        tenant = await _require_tenant(session, tenant_id)
        members = await session.execute(
            select(User.email, User.name, Membership.role, User.disabled_at)
            .join(Membership, Membership.user_id == User.id)
            .where(Membership.tenant_id == tenant_id)
            .order_by(User.email)
        )
        listed: list[Found] = [
            {"email": row.email, "name": row.name, "role": row.role, "disabled": row.disabled_at is not None}
            for row in members
        ]
        return {**_tenant(tenant), "retention_days": tenant.retention_days}, listed


async def suspend(database: Database, tenant_id: UUID, *, suspended: bool) -> Found:
    """It holds from the next request on."""
    async with database.identity() as session:
        tenant = await _require_tenant(session, tenant_id)
        if (tenant.suspended_at is not None) != suspended:
            moment = now() if suspended else None
            await session.execute(update(Tenant).where(Tenant.id == tenant_id).values(suspended_at=moment))
            action = Action.TENANT_SUSPENDED if suspended else Action.TENANT_RESUMED
            await _record(session, tenant_id, action, TargetType.TENANT, tenant_id)
        return {**_tenant(tenant), "suspended": suspended}


async def change_plan(database: Database, tenant_id: UUID, plan: str) -> Found:
    """It holds from the next request on."""
    async with database.identity() as session:
        tenant = await _require_tenant(session, tenant_id)
        if await session.get(Plan, plan) is None:
            raise await plans.unknown(database, plan)
        before = tenant.plan
        if before != plan:
            await session.execute(update(Tenant).where(Tenant.id == tenant_id).values(plan=plan))
            changes = {"plan": [before, plan]}
            await _record(session, tenant_id, Action.TENANT_PLAN_CHANGED, TargetType.TENANT, tenant_id, changes)
        return {**_tenant(tenant), "plan": plan}


async def list_users(database: Database) -> list[Found]:
    tenants = select(func.count()).where(Membership.user_id == User.id).scalar_subquery()
    statement = select(User.id, User.email, User.name, User.disabled_at, User.created_at, tenants.label("tenants"))
    async with database.identity() as session:
        rows = await session.execute(statement.order_by(User.id))
        return [
            {
                "id": row.id,
                "email": row.email,
                "name": row.name,
                "disabled": row.disabled_at is not None,
                "tenants": row.tenants,
                "created_at": row.created_at,
            }
            for row in rows
        ]


async def disable_user(database: Database, email: str, *, disabled: bool) -> Found:
    """Every credential of theirs is refused from the next request on."""
    async with database.identity() as session:
        user = await session.scalar(select(User).where(User.email == email.lower()).with_for_update())
        if user is None:
            raise UnknownThing(f"There is no user {email}.")
        if (user.disabled_at is not None) != disabled:
            moment = now() if disabled else None
            await session.execute(update(User).where(User.id == user.id).values(disabled_at=moment))
            action = Action.USER_DISABLED if disabled else Action.USER_ENABLED
            changes = {"disabled": [not disabled, disabled]}
            await audit.record_of_user(session, user.id, OPERATOR, action, changes)
        return {"id": user.id, "email": user.email, "disabled": disabled}


async def list_keys(database: Database, tenant_id: UUID) -> list[dict[str, Any]]:
    async with database.identity() as session:
        await _require_tenant(session, tenant_id)
        rows = await session.execute(
            select(ApiKey, User.email)
            .join(User, User.id == ApiKey.user_id)
            .where(ApiKey.tenant_id == tenant_id)
            .order_by(ApiKey.id)
        )
        return [
            {
                "id": row.ApiKey.id,
                "name": row.ApiKey.name,
                "hint": row.ApiKey.hint,
                "user": row.email,
                "scopes": row.ApiKey.scopes,
                "last_used_at": row.ApiKey.last_used_at,
                "expires_at": row.ApiKey.expires_at,
                "revoked_at": row.ApiKey.revoked_at,
            }
            for row in rows
        ]


async def revoke_key(database: Database, key_id: UUID) -> Found:
    async with database.identity() as session:
        key = await session.scalar(select(ApiKey).where(ApiKey.id == key_id))
        if key is None:
            raise UnknownThing(f"There is no API key {key_id}.")
        await enter_tenant(session, key.tenant_id)
        revoked = await session.scalar(
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=now())
            .returning(ApiKey.id)
        )
        if revoked is not None:
            audit.record(session, key.tenant_id, OPERATOR, Action.API_KEY_REVOKED, TargetType.API_KEY, key_id)
            await session.flush()
        return {"id": key_id, "name": key.name, "hint": key.hint, "revoked": True}


async def _require_tenant(session: AsyncSession, tenant_id: UUID) -> Tenant:
    tenant = await session.scalar(select(Tenant).where(Tenant.id == tenant_id))
    if tenant is None:
        raise UnknownThing(f"There is no tenant {tenant_id}.")
    return tenant


async def _record(
    session: AsyncSession,
    tenant_id: UUID,
    action: Action,
    target_type: TargetType,
    target_id: UUID,
    changes: dict[str, list[Any]] | None = None,
) -> None:
    await enter_tenant(session, tenant_id)
    audit.record(session, tenant_id, OPERATOR, action, target_type, target_id, changes)
    await session.flush()


def _tenant(row: Tenant) -> Found:
    return {
        "id": row.id,
        "name": row.name,
        "plan": row.plan,
        "suspended": row.suspended_at is not None,
        "created_at": row.created_at,
    }
