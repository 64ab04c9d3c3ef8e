"""Credentials in, Actor out; signing up and in, rotating and revoking tokens. All of it as `easel_identity`."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, exists, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, now, uuid7
from app.error_codes import ErrorCode
from app.errors import AppError, Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from app.identity import credentials
from app.identity.models import ApiKey, Membership, Role, Tenant, Token, TokenKind, User
from app.settings import Settings

# A repeated refresh gets the same successor within this time, as its answer may have been lost; later it is theft.
REFRESH_GRACE = timedelta(seconds=10)
LAST_USED_PRECISION = timedelta(seconds=60)

SCOPES = ("chat:read", "chat:write", "attachments:read", "attachments:write", "account:read", "account:write")

NOT_SIGNED_IN = "Send `Authorization: Bearer <access token or API key>`; this one is missing, expired or revoked."


NOT_MATCHING = "E-mail address or password is wrong."


@dataclass(frozen=True)
class Actor:
    """The caller, in one tenant, with their rights; `scopes` None means all that the role allows."""

    user_id: UUID
    tenant_id: UUID
    role: Role
    scopes: frozenset[str] | None = None
    api_key_id: UUID | None = None
    token_family: UUID | None = None

    @property
    def owner(self) -> tuple[UUID, UUID]:
        return self.tenant_id, self.user_id

    def allows(self, role: Role, scope: str) -> bool:
        return self.role.covers(role) and (self.scopes is None or scope in self.scopes)


@dataclass(frozen=True)
class TokenPair:
    access_token: str
    refresh_token: str
    expires_in: int


async def identify(session: AsyncSession, bearer: str, tenant_id: UUID | None) -> Actor:
    """The actor behind a bearer credential, or Unauthenticated; may commit."""
    if bearer.startswith(credentials.KEY_PREFIX):
        return await _identify_key(session, bearer, tenant_id)
    return await _identify_token(session, bearer, tenant_id)


async def _identify_key(session: AsyncSession, bearer: str, tenant_id: UUID | None) -> Actor:
    statement = (
        select(ApiKey, Membership.role)
        .join(Membership, (Membership.tenant_id == ApiKey.tenant_id) & (Membership.user_id == ApiKey.user_id))
        .join(User, User.id == ApiKey.user_id)
        .where(ApiKey.secret_hash == credentials.fingerprint(bearer), ApiKey.revoked_at.is_(None))
        .where(or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now()), User.disabled_at.is_(None))
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        raise Unauthenticated(NOT_SIGNED_IN)
    key, role = row
    if tenant_id not in (None, key.tenant_id):
        raise NotFound("tenant")
    if key.last_used_at is None or key.last_used_at < now() - LAST_USED_PRECISION:
        await session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=now()))
        # At once: the use counts though the request may fail, and no other request with this key waits for this one.
        await session.commit()
    scopes = None if key.scopes is None else frozenset(key.scopes)
    return Actor(key.user_id, key.tenant_id, Role(role), scopes, api_key_id=key.id)


async def _identify_token(session: AsyncSession, bearer: str, tenant_id: UUID | None) -> Actor:
    statement = (
        select(Token.user_id, Token.family_id, Membership.tenant_id, Membership.role)
        .join(User, User.id == Token.user_id)
        .outerjoin(Membership, Membership.user_id == User.id)
        .where(Token.secret_hash == credentials.fingerprint(bearer), Token.kind == TokenKind.ACCESS)
        .where(Token.revoked_at.is_(None), Token.expires_at > now(), User.disabled_at.is_(None))
    )
    rows = (await session.execute(statement)).all()
    if not rows:
        raise Unauthenticated(NOT_SIGNED_IN)
    memberships = {row.tenant_id: row.role for row in rows if row.tenant_id is not None}
    chosen = _choose_tenant(memberships, tenant_id)
    return Actor(rows[0].user_id, chosen, Role(memberships[chosen]), token_family=rows[0].family_id)


def _choose_tenant(memberships: dict[UUID, str], requested: UUID | None) -> UUID:
    if requested is not None:
        if requested not in memberships:
            raise NotFound("tenant")
        return requested
    if not memberships:
        raise Forbidden("You are not a member of any tenant.", code=ErrorCode.NO_TENANT)
    if len(memberships) > 1:
        raise Invalid(
            "You belong to several tenants: say which with the header X-Tenant-Id.", code=ErrorCode.TENANT_REQUIRED
        )
    return next(iter(memberships))


async def sign_up(
    database: Database, settings: Settings, *, email: str, password: str, tenant_name: str
) -> tuple[User, Tenant, TokenPair]:
    """A new user with a new tenant of their own; Conflict where the address is taken.

    The password is hashed before there is a transaction: no connection waits for a processor.
    """
    if not settings.signup_open:
        raise Forbidden("Sign-up is closed: ask whoever runs this service for access.", code=ErrorCode.SIGNUP_CLOSED)
    user = User(email=email.lower(), password_hash=await credentials.hash_password(password))
    tenant = Tenant(name=tenant_name)
    async with database.identity() as session:
        session.add_all([user, tenant])
        try:
            await session.flush()
        except IntegrityError:
            raise Conflict(
                "This e-mail address has an account already: sign in instead.", code=ErrorCode.EMAIL_TAKEN
            ) from None
        session.add(Membership(tenant_id=tenant.id, user_id=user.id, role=Role.OWNER))
        await session.flush()
        return user, tenant, _issue(session, settings, user.id)


async def sign_in(database: Database, settings: Settings, *, email: str, password: str) -> TokenPair:
    """New tokens, or Unauthenticated. The password is hashed between two transactions."""
    async with database.identity() as session:
        enabled = select(User.id, User.password_hash).where(User.email == email.lower(), User.disabled_at.is_(None))
        user = (await session.execute(enabled)).one_or_none()
    matches = await credentials.verify_password(password, user.password_hash if user else None)
    if user is None or not matches:
        raise Unauthenticated(NOT_MATCHING)
    async with database.identity() as session:
        # The user may have been disabled, or the password changed, in between.
        unchanged = enabled.where(User.id == user.id, User.password_hash == user.password_hash)
        if (await session.execute(unchanged.with_for_update(key_share=True))).one_or_none() is None:
            raise Unauthenticated(NOT_MATCHING)
        return _issue(session, settings, user.id)


def _issue(session: AsyncSession, settings: Settings, user_id: UUID) -> TokenPair:
    access = credentials.new_secret(credentials.ACCESS_PREFIX)
    refresh = credentials.new_secret(credentials.REFRESH_PREFIX)
    return _keep(session, settings, user_id, uuid7(), access, refresh)


def _keep(
    session: AsyncSession, settings: Settings, user_id: UUID, family_id: UUID, access: str, refresh: str
) -> TokenPair:
    lifetimes = {
        TokenKind.ACCESS: (access, timedelta(seconds=settings.access_token_seconds)),
        TokenKind.REFRESH: (refresh, timedelta(days=settings.refresh_token_days)),
    }
    for kind, (secret, lifetime) in lifetimes.items():
        session.add(
            Token(
                user_id=user_id,
                family_id=family_id,
                kind=kind,
                secret_hash=credentials.fingerprint(secret),
                expires_at=now() + lifetime,
            )
        )
    return TokenPair(access, refresh, settings.access_token_seconds)


@dataclass(frozen=True)
class Stolen:
    """A refresh token was used again too late: the whole family has just been revoked."""

    family_id: UUID


async def rotate(session: AsyncSession, settings: Settings, refresh_token: str) -> TokenPair | Stolen:
    """Trade a refresh token for its one successor; the caller turns Stolen into a refusal after the commit."""
    secret_hash = credentials.fingerprint(refresh_token)
    used = await session.execute(
        update(Token)
        .where(Token.secret_hash == secret_hash, Token.kind == TokenKind.REFRESH, Token.used_at.is_(None))
        .where(Token.revoked_at.is_(None), Token.expires_at > now(), _enabled())
        .values(used_at=now())
        .returning(Token.user_id, Token.family_id)
    )
    signing_key = settings.signing_keys()[0]
    access = credentials.successor(signing_key, credentials.ACCESS_PREFIX, refresh_token)
    refresh = credentials.successor(signing_key, credentials.REFRESH_PREFIX, refresh_token)
    if row := used.one_or_none():
        return _keep(session, settings, row.user_id, row.family_id, access, refresh)
    return await _replayed(session, settings, secret_hash, TokenPair(access, refresh, settings.access_token_seconds))


def _enabled() -> ColumnElement[bool]:
    return exists().where(User.id == Token.user_id, User.disabled_at.is_(None))


async def _replayed(
    session: AsyncSession, settings: Settings, secret_hash: bytes, pair: TokenPair
) -> TokenPair | Stolen:
    token = await session.scalar(select(Token).where(Token.secret_hash == secret_hash, Token.kind == TokenKind.REFRESH))
    if token is None or token.revoked_at is not None or token.used_at is None:
        raise refresh_rejected()
    if token.used_at > now() - REFRESH_GRACE:
        return pair
    await revoke_family(session, token.family_id)
    return Stolen(token.family_id)


def refresh_rejected() -> AppError:
    return Unauthenticated("This refresh token is not valid any more: sign in again.")


async def revoke_family(session: AsyncSession, family_id: UUID) -> None:
    """Sign out: every token of one sign-in stops working with the next request."""
    await session.execute(
        update(Token).where(Token.family_id == family_id, Token.revoked_at.is_(None)).values(revoked_at=now())
    )


async def make_api_key(
    session: AsyncSession, actor: Actor, *, name: str, scopes: list[str] | None, expires_at: datetime | None
) -> tuple[ApiKey, str]:
    """A key of the actor's own rights or fewer; the secret is returned this once."""
    allowed = SCOPES if actor.scopes is None else sorted(actor.scopes)
    excess = [scope for scope in scopes or [] if scope not in allowed]
    if excess:
        raise Forbidden(f"You cannot give the scopes {', '.join(excess)}; you can give {', '.join(allowed)}.")
    granted = scopes if scopes is not None else (None if actor.scopes is None else allowed)
    secret = credentials.new_secret(credentials.KEY_PREFIX)
    key = ApiKey(
        tenant_id=actor.tenant_id,
        user_id=actor.user_id,
        name=name,
        secret_hash=credentials.fingerprint(secret),
        scopes=list(granted) if granted is not None else None,
        expires_at=expires_at,
    )
    session.add(key)
    await session.flush()
    return key, secret


async def revoke_api_key(session: AsyncSession, actor: Actor, key_id: UUID) -> None:
    revoked = await session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.user_id == actor.user_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=now())
        .returning(ApiKey.id)
    )
    if revoked.one_or_none() is None:
        raise NotFound("API key")
