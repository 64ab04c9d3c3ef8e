"""API keys: a tenant's, each acting as the member who made it."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import now
from app.errors import NotFound
from app.identity import audit, credentials
from app.identity.audit import Action, Author, TargetType
from app.identity.models import ApiKey
from app.identity.permissions import Permission
from app.identity.service import Actor

HINT_CHARACTERS = 4


async def create(
    session: AsyncSession, actor: Actor, *, name: str, scopes: list[str] | None, expires_at: datetime | None
) -> tuple[ApiKey, str]:
    """A key of the actor's own rights, or of some of them; the secret is returned this once."""
    secret = credentials.new_secret(credentials.KEY_PREFIX)
    key = ApiKey(
        tenant_id=actor.tenant_id,
        user_id=actor.user_id,
        name=name,
        secret_hash=credentials.fingerprint(secret),
        hint=secret[-HINT_CHARACTERS:],
        scopes=scopes,
        expires_at=expires_at,
    )
    session.add(key)
    await session.flush()
    _record(session, actor, Action.API_KEY_CREATED, key.id, {"scopes": [None, scopes]})
    await session.flush()
    return key, secret


def listed(actor: Actor, *, everyones: bool) -> Select[ApiKey]:
    """The actor's keys that are not revoked, or the tenant's. Raises Forbidden."""
    statement = select(ApiKey).where(ApiKey.revoked_at.is_(None))
    if everyones:
        actor.require(Permission.MANAGE_KEYS)
        return statement
    return statement.where(ApiKey.user_id == actor.user_id)


async def revoke(session: AsyncSession, actor: Actor, key_id: UUID) -> None:
    """The actor's own, or anyone's by who may manage keys. Raises NotFound."""
    statement = update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
    if not actor.role.covers(Permission.MANAGE_KEYS.role):
        statement = statement.where(ApiKey.user_id == actor.user_id)
    revoked = await session.execute(statement.values(revoked_at=now()).returning(ApiKey.id))
    if revoked.one_or_none() is None:
        raise NotFound("API key")
    _record(session, actor, Action.API_KEY_REVOKED, key_id, {})
    await session.flush()


def _record(
    session: AsyncSession, actor: Actor, action: Action, key_id: UUID, changes: dict[str, list[list[str] | None]]
) -> None:
    audit.record(session, actor.tenant_id, Author.of(actor), action, TargetType.API_KEY, key_id, changes)
