"""Accepting an invitation: with a new account, or signed in with the invited address."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import service
from app.accounts.passwords import check_new
from app.accounts.service import TokenPair
from app.db import Database, enter_tenant, now
from app.error_codes import ErrorCode
from app.errors import Forbidden, Invalid, NotFound, Unauthenticated
from app.identity import audit, credentials
from app.identity.attempts import Attempts
from app.identity.audit import Action, Author, TargetType
from app.identity.models import Invitation, Membership, Role, Tenant, User
from app.identity.service import SignedIn
from app.logs import tag
from app.settings import Settings
from app.tenants.schemas import TenantView


@dataclass(frozen=True)
class Invited:
    tenant: TenantView
    email: str
    role: Role


@dataclass(frozen=True)
class NewAccount:
    """What its owner chose."""

    password: str | None
    name: str | None
    user_agent: str | None


async def accept(database: Database, token: str, caller: SignedIn) -> Invited:
    """Join as the signed-in caller. Raises NotFound, Forbidden, TooManyAttempts."""
    attempts = Attempts.with_token()
    async with database.identity() as session:
        invited = await _find(session, attempts, token)
        if invited.email != caller.email:
            raise Forbidden(
                "This invitation is for another address: sign in with that one.", code=ErrorCode.WRONG_ACCOUNT
            )
        await attempts.succeed(session)
        await _use(session, token)
        await _join(session, invited, caller.user_id)
    return invited


async def accept_anew(
    database: Database, settings: Settings, token: str, account: NewAccount
) -> tuple[Invited, TokenPair]:
    """Join with a new account. Raises as `accept`, Unauthenticated where the address has an account, and Invalid."""
    attempts = Attempts.with_token()
    async with database.identity() as session:
        invited = await _find(session, attempts, token)
        known = await session.scalar(select(User.id).where(User.email == invited.email))
        await attempts.succeed(session)
    if known is not None:
        raise Unauthenticated(
            "This address has an account: sign in with it, then accept.", code=ErrorCode.SIGN_IN_REQUIRED
        )
    if settings.signup_closed:
        raise Forbidden(service.SIGNUP_CLOSED, code=ErrorCode.SIGNUP_CLOSED)
    if account.password is None:
        fault = "choose a password for the new account"
        raise Invalid(f"password: {fault}.", errors=[{"field": "password", "message": fault, "given": ""}])
    await check_new(account.password, invited.email)
    hashed = await credentials.hash_password(account.password)
    async with database.identity() as session:
        await _use(session, token)
        user = await service.add_user(session, invited.email, hashed, name=account.name)
        tokens = service.issue(session, settings, user.id, account.user_agent)
        await session.flush()
        await _join(session, invited, user.id)
    return invited, tokens


async def _find(session: AsyncSession, attempts: Attempts, token: str) -> Invited:
    await attempts.count(session)
    found = await session.execute(
        select(Invitation.tenant_id, Tenant.name.label("tenant_name"), Invitation.email, Invitation.role)
        .join(Tenant, Tenant.id == Invitation.tenant_id)
        .where(Invitation.secret_hash == credentials.fingerprint(token), Invitation.expires_at > now())
    )
    row = found.one_or_none()
    if row is None:
        # The failure counts, though the answer is an error.
        await session.commit()
        raise NotFound("invitation")
    return Invited(TenantView(id=row.tenant_id, name=row.tenant_name), row.email, row.role)


async def _use(session: AsyncSession, token: str) -> None:
    """Of many at once, one does. Raises NotFound."""
    used = delete(Invitation).where(Invitation.secret_hash == credentials.fingerprint(token))
    if (await session.execute(used.returning(Invitation.id))).one_or_none() is None:
        raise NotFound("invitation")


async def _join(session: AsyncSession, invited: Invited, user_id: UUID) -> None:
    tag(tenant_id=invited.tenant.id, user_id=user_id)
    values = {"tenant_id": invited.tenant.id, "user_id": user_id, "role": invited.role, "created_at": now()}
    await session.execute(insert(Membership).values(values).on_conflict_do_nothing())
    await enter_tenant(session, invited.tenant.id)
    changes = {"role": [None, invited.role]}
    audit.record(
        session, invited.tenant.id, Author.user(user_id), Action.MEMBER_JOINED, TargetType.USER, user_id, changes
    )
    await session.flush()
