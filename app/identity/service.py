"""Credentials in, the caller and the actor out. All of it as `easel_identity`."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, LargeBinary, bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.compiled import CompiledStatement
from app.db import now
from app.error_codes import ErrorCode
from app.errors import Forbidden, Invalid, NotFound, Unauthenticated, UserRequired
from app.identity import credentials
from app.identity.models import ApiKey, Membership, Role, SignIn, Tenant, Token, TokenKind, User
from app.identity.permissions import Permission

LAST_USED_PRECISION = timedelta(seconds=60)

NOT_SIGNED_IN = "Send `Authorization: Bearer <access token or API key>`; this one is missing, expired or revoked."


@dataclass(frozen=True)
class Actor:
    """The caller, in one tenant, with their rights; with an API key where there is an `api_key_id`.

    `scopes` None means all that the role allows.
    """

    user_id: UUID
    tenant_id: UUID
    role: Role
    scopes: frozenset[str] | None = None
    api_key_id: UUID | None = None

    @property
    def owner(self) -> tuple[UUID, UUID]:
        return self.tenant_id, self.user_id

    def require(self, permission: Permission) -> None:
        """Raises UserRequired or Forbidden."""
        if self.api_key_id is not None:
            _require_scope(self.scopes, permission)
        if not self.role.covers(permission.role):
            raise Forbidden(f"This needs the role {permission.role} or a higher one.", needs_role=permission.role)


def _require_scope(scopes: frozenset[str] | None, permission: Permission) -> None:
    """Of an API key. Raises UserRequired or Forbidden."""
    if permission.scope is None:
        raise UserRequired
    if scopes is not None and permission.scope not in scopes:
        raise Forbidden(f"This needs the scope {permission.scope}.", needs_scope=permission.scope)


@dataclass(frozen=True)
class TenantMembership:
    """A tenant in which the caller has a role."""

    tenant_id: UUID
    name: str
    role: Role
    suspended: bool


@dataclass(frozen=True)
class Caller:
    """The user behind a credential, and their tenants; of an API key, its own alone."""

    user_id: UUID
    email: str
    name: str | None
    memberships: tuple[TenantMembership, ...]
    scopes: frozenset[str] | None = None
    api_key_id: UUID | None = None

    def require(self, permission: Permission) -> None:
        """Of the credential alone, whatever the role. Raises UserRequired or Forbidden."""
        if self.api_key_id is not None:
            _require_scope(self.scopes, permission)

    def actor(self, membership: TenantMembership) -> Actor:
        if membership.suspended:
            raise Forbidden("This tenant is suspended: ask whoever runs this service.", code=ErrorCode.TENANT_SUSPENDED)
        return Actor(self.user_id, membership.tenant_id, membership.role, self.scopes, self.api_key_id)

    def require_membership(self, tenant_id: UUID | None) -> TenantMembership:
        """The tenant that was asked for, or the only one; raises NotFound, Forbidden or Invalid."""
        membership = self.find_membership(tenant_id)
        if membership is None and not self.memberships:
            raise Forbidden("You are not a member of any tenant.", code=ErrorCode.NO_TENANT)
        if membership is None:
            raise Invalid(
                "You belong to several tenants: say which with the header X-Tenant-Id.", code=ErrorCode.TENANT_REQUIRED
            )
        return membership

    def find_membership(self, tenant_id: UUID | None) -> TenantMembership | None:
        """The tenant that was asked for, or the only one, or None; raises NotFound."""
        if tenant_id is None:
            return self.memberships[0] if len(self.memberships) == 1 else None
        for membership in self.memberships:
            if membership.tenant_id == tenant_id:
                return membership
        raise NotFound("tenant")


@dataclass(frozen=True, kw_only=True)
class SignedIn(Caller):
    """A caller with an access token."""

    sign_in_id: UUID


async def identify(session: AsyncSession, bearer: str) -> Caller:
    """The caller behind a bearer credential, or Unauthenticated; may commit."""
    if bearer.startswith(credentials.KEY_PREFIX):
        return await _identify_key(session, bearer)
    return await _identify_token(session, bearer)


async def _identify_key(session: AsyncSession, bearer: str) -> Caller:
    row = (await _OF_KEY.execute(session, _given(bearer))).one_or_none()
    if row is None:
        raise Unauthenticated(NOT_SIGNED_IN)
    if row.last_used_at is None or row.last_used_at < now() - LAST_USED_PRECISION:
        await session.execute(update(ApiKey).where(ApiKey.id == row.key_id).values(last_used_at=now()))
        # At once: the use counts though the request may fail, and no other request with this key waits for this one.
        await session.commit()
    scopes = None if row.scopes is None else frozenset(row.scopes)
    membership = TenantMembership(row.tenant_id, row.tenant_name, Role(row.role), row.suspended_at is not None)
    return Caller(row.user_id, row.email, row.name, (membership,), scopes, api_key_id=row.key_id)


async def _identify_token(session: AsyncSession, bearer: str) -> SignedIn:
    rows = (await _OF_TOKEN.execute(session, _given(bearer))).all()
    if not rows:
        raise Unauthenticated(NOT_SIGNED_IN)
    first = rows[0]
    if first.last_used_at is None or first.last_used_at < now() - LAST_USED_PRECISION:
        await session.execute(update(SignIn).where(SignIn.id == first.sign_in_id).values(last_used_at=now()))
        await session.commit()
    memberships = tuple(
        TenantMembership(row.tenant_id, row.tenant_name, Role(row.role), row.suspended_at is not None)
        for row in rows
        if row.tenant_id is not None
    )
    return SignedIn(first.user_id, first.email, first.name, memberships, sign_in_id=first.sign_in_id)


def _given(bearer: str) -> dict[str, Any]:
    return {"secret_hash": credentials.fingerprint(bearer), "now": now()}


_HASH, _NOW = bindparam("secret_hash", type_=LargeBinary), bindparam("now", type_=DateTime(timezone=True))
_USER = (User.id.label("user_id"), User.email, User.name)
_MEMBERSHIP = (Membership.tenant_id, Membership.role, Tenant.name.label("tenant_name"), Tenant.suspended_at)
_OF_KEY = CompiledStatement(
    select(ApiKey.id.label("key_id"), ApiKey.scopes, ApiKey.last_used_at, *_USER, *_MEMBERSHIP)
    .join(Membership, (Membership.tenant_id == ApiKey.tenant_id) & (Membership.user_id == ApiKey.user_id))
    .join(Tenant, Tenant.id == ApiKey.tenant_id)
    .join(User, User.id == ApiKey.user_id)
    .where(ApiKey.secret_hash == _HASH, ApiKey.revoked_at.is_(None))
    .where(or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > _NOW), User.disabled_at.is_(None))
)
_OF_TOKEN = CompiledStatement(
    select(SignIn.id.label("sign_in_id"), SignIn.last_used_at, *_USER, *_MEMBERSHIP)
    .select_from(Token)
    .join(SignIn, SignIn.id == Token.sign_in_id)
    .join(User, User.id == SignIn.user_id)
    .outerjoin(Membership, Membership.user_id == User.id)
    .outerjoin(Tenant, Tenant.id == Membership.tenant_id)
    .where(Token.secret_hash == _HASH, Token.kind == TokenKind.ACCESS)
    .where(Token.expires_at > _NOW, SignIn.ended_at.is_(None), User.disabled_at.is_(None))
    .order_by(Membership.created_at, Membership.tenant_id)
)
