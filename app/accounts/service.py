"""Signing up, in and out; rotating tokens. All of it as `easel_identity`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, exists, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, now, uuid7
from app.error_codes import ErrorCode
from app.errors import AppError, Conflict, Forbidden, Unauthenticated
from app.identity import credentials
from app.identity.attempts import Attempts
from app.identity.models import SignIn, Tenant, Token, TokenKind, User
from app.logs import tag
from app.settings import Settings
from app.tenants import service as tenants

log = logging.getLogger(__name__)

USER_AGENT_CHARACTERS = 200
# A repeated refresh gets the same successor within this time, as its answer may have been lost; later it is theft.
REFRESH_GRACE = timedelta(seconds=10)

NOT_MATCHING = "E-mail address or password is wrong."
SIGNUP_CLOSED = "Sign-up is closed: ask whoever runs this service for access."


@dataclass(frozen=True)
class TokenPair:
    access_token: str
    refresh_token: str
    expires_in: int


@dataclass(frozen=True)
class SignedUp:
    user: User
    tenant: Tenant
    tokens: TokenPair


async def sign_up(
    database: Database, settings: Settings, *, email: str, password: str, tenant_name: str, user_agent: str | None
) -> SignedUp:
    """A new user with a new tenant of their own; Conflict where the address is taken.

    The password is hashed before there is a transaction: no connection waits for a processor.
    """
    if not settings.signup_open:
        raise Forbidden(SIGNUP_CLOSED, code=ErrorCode.SIGNUP_CLOSED)
    hashed = await credentials.hash_password(password)
    async with database.identity() as session:
        user = await add_user(session, email, hashed, name=None)
        tokens = issue(session, settings, user.id, user_agent)
        await session.flush()
        tenant = await tenants.create(session, user.id, tenant_name, settings.default_plan)
    tag(user_id=user.id, tenant_id=tenant.id)
    return SignedUp(user, tenant, tokens)


async def add_user(session: AsyncSession, email: str, password_hash: str, *, name: str | None) -> User:
    """Raises Conflict where the address is taken."""
    user = User(email=email.lower(), password_hash=password_hash, name=name)
    session.add(user)
    try:
        await session.flush()
    except IntegrityError:
        raise Conflict(
            "This e-mail address has an account already: sign in instead.", code=ErrorCode.EMAIL_TAKEN
        ) from None
    return user


async def sign_in(
    database: Database, settings: Settings, *, email: str, password: str, user_agent: str | None
) -> TokenPair:
    """New tokens, or Unauthenticated, or TooManyAttempts. The password is hashed between two transactions."""
    address, attempts = email.lower(), Attempts.at(email.lower())
    async with database.identity() as session:
        await attempts.count(session)
        enabled = select(User.id, User.password_hash).where(User.email == address, User.disabled_at.is_(None))
        user = (await session.execute(enabled)).one_or_none()
    matches = await credentials.verify_password(password, user.password_hash if user else None)
    if user is None or not matches:
        log.info("auth.failed")
        raise Unauthenticated(NOT_MATCHING)
    async with database.identity() as session:
        # The user may have been disabled, or the password changed, in between.
        unchanged = enabled.where(User.id == user.id, User.password_hash == user.password_hash)
        if (await session.execute(unchanged.with_for_update(key_share=True))).one_or_none() is None:
            raise Unauthenticated(NOT_MATCHING)
        await attempts.succeed(session)
        tokens = issue(session, settings, user.id, user_agent)
    tag(user_id=user.id)
    log.info("auth.signed_in")
    return tokens


def issue(session: AsyncSession, settings: Settings, user_id: UUID, user_agent: str | None) -> TokenPair:
    """The tokens of a new sign-in; `user_agent` tells its user later which one it is."""
    sign_in = SignIn(id=uuid7(), user_id=user_id, user_agent=(user_agent or "")[:USER_AGENT_CHARACTERS] or None)
    session.add(sign_in)
    access = credentials.new_secret(credentials.ACCESS_PREFIX)
    refresh = credentials.new_secret(credentials.REFRESH_PREFIX)
    return _keep(session, settings, sign_in.id, access, refresh)


def _keep(session: AsyncSession, settings: Settings, sign_in_id: UUID, access: str, refresh: str) -> TokenPair:
    lifetimes = {
        TokenKind.ACCESS: (access, timedelta(seconds=settings.access_token_seconds)),
        TokenKind.REFRESH: (refresh, timedelta(days=settings.refresh_token_days)),
    }
    for kind, (secret, lifetime) in lifetimes.items():
        session.add(
            Token(
                sign_in_id=sign_in_id,
                kind=kind,
                secret_hash=credentials.fingerprint(secret),
                expires_at=now() + lifetime,
            )
        )
    return TokenPair(access, refresh, settings.access_token_seconds)


@dataclass(frozen=True)
class Stolen:
    """A refresh token was used again too late: its sign-in has just been ended."""

    sign_in_id: UUID


async def rotate(session: AsyncSession, settings: Settings, refresh_token: str) -> TokenPair | Stolen:
    """Trade a refresh token for its one successor; the caller turns Stolen into a refusal after the commit."""
    secret_hash = credentials.fingerprint(refresh_token)
    used = await session.execute(
        update(Token)
        .where(Token.secret_hash == secret_hash, Token.kind == TokenKind.REFRESH, Token.used_at.is_(None))
        .where(Token.expires_at > now(), _is_open())
        .values(used_at=now())
        .returning(Token.sign_in_id)
    )
    # Of each key, as another process may have answered the first time, and signs with another one while keys rotate.
    pairs = [_successors(settings, key, refresh_token) for key in settings.signing_keys()]
    if (sign_in_id := used.scalar_one_or_none()) is not None:
        return _keep(session, settings, sign_in_id, pairs[0].access_token, pairs[0].refresh_token)
    return await _replayed(session, secret_hash, pairs)


def _successors(settings: Settings, signing_key: str, refresh_token: str) -> TokenPair:
    prefixes = (credentials.ACCESS_PREFIX, credentials.REFRESH_PREFIX)
    access, refresh = (credentials.derived(signing_key, prefix, refresh_token) for prefix in prefixes)
    return TokenPair(access, refresh, settings.access_token_seconds)


def _is_open() -> ColumnElement[bool]:
    return exists().where(
        SignIn.id == Token.sign_in_id,
        SignIn.ended_at.is_(None),
        User.id == SignIn.user_id,
        User.disabled_at.is_(None),
    )


async def _replayed(session: AsyncSession, secret_hash: bytes, pairs: Sequence[TokenPair]) -> TokenPair | Stolen:
    """The one of `pairs` that was handed out. Raises Unauthenticated."""
    used = select(Token).where(Token.secret_hash == secret_hash, Token.kind == TokenKind.REFRESH, _is_open())
    token = await session.scalar(used)
    if token is None or token.used_at is None:
        raise refresh_rejected()
    if token.used_at > now() - REFRESH_GRACE:
        return await _handed_out(session, pairs)
    await session.execute(update(SignIn).where(SignIn.id == token.sign_in_id).values(ended_at=now()))
    return Stolen(token.sign_in_id)


async def _handed_out(session: AsyncSession, pairs: Sequence[TokenPair]) -> TokenPair:
    by_hash = {credentials.fingerprint(pair.refresh_token): pair for pair in pairs}
    kept = await session.scalar(select(Token.secret_hash).where(Token.secret_hash.in_(by_hash)))
    if kept is None:
        raise refresh_rejected()
    return by_hash[kept]


def refresh_rejected() -> AppError:
    return Unauthenticated("This refresh token is not valid any more: sign in again.")
