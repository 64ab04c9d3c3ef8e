"""`Idempotency-Key`: one run for each key of a user, and the first answer again for 24 hours."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, and_, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.compiled import CompiledStatement
from app.db import Base, Database, now
from app.error_codes import ErrorCode
from app.errors import Conflict, Invalid
from app.identity.service import Actor
from app.runs.models import Run
from app.runs.streams import Stream

LIFETIME = timedelta(hours=24)
MAX_CHARACTERS = 255
RETRY_AFTER_SECONDS = 1

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotent-Replayed": "true"}


class IdempotencyKey(Base):
    """A key and the answer it was first given, written in the transaction of the run itself.

    `fingerprint` is the SHA-256 of the body the key came with; `body` is the answer's, as it was sent.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.id"], ondelete="CASCADE"),
        Index("ix_idempotency_keys_run", "tenant_id", "run_id"),
        Index("ix_idempotency_keys_expired", "expires_at"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    run_id: Mapped[UUID]
    status: Mapped[int]
    headers: Mapped[dict[str, str]] = mapped_column(JSONB)
    body: Mapped[str]
    expires_at: Mapped[datetime]


@dataclass(frozen=True)
class Answer:
    """The answer, JSON, to a request that started a run; `run`, and `stream` if followed, where it did so just now."""

    run_id: UUID
    status: int
    headers: dict[str, str]
    body: str
    run: Run | None = None
    stream: Stream | None = None


def visible_ascii(key: str) -> str:
    """For `AfterValidator(visible_ascii)`."""
    if not 1 <= len(key) <= MAX_CHARACTERS or any(not "!" <= character <= "~" for character in key):
        raise ValueError(f"allowed: 1 to {MAX_CHARACTERS} visible ASCII characters")
    return key


def require_key(key: str | None, last_event_id: int | None) -> None:
    """A client that reconnects wants the run that it started, and only the key tells which. Raises Conflict."""
    if last_event_id is not None and key is None:
        raise Conflict(
            f"Last-Event-ID continues a run's events, and without {HEADER} it is unknown which run's: nothing was "
            f"started. Send {HEADER} with each start, or follow the run at /v1/runs/{{id}}/events.",
            code=ErrorCode.IDEMPOTENCY_KEY_REQUIRED,
        )


async def recall(session: AsyncSession, actor: Actor, route: str, key: str | None, request: BaseModel) -> Answer | None:
    """The answer that was first given to this key; None where there is none, and then this transaction may give it.

    Raises Invalid where the key came with another body, Conflict while another request with it is in progress.
    """
    if key is None:
        return None
    held = (await _LOCK.execute(session, {"number": _lock_number(actor, route, key)})).scalar()
    given = {"tenant": actor.tenant_id, "user": actor.user_id, "route": route, "key": key}
    # In a statement after the lock, not in one with it, so that it sees what the last holder committed.
    found = (await _FIND.execute(session, given)).scalar()
    if found and found.expires_at > now():
        return _answer_again(found, request)
    if not held:
        raise Conflict(
            f"A request with this {HEADER} is being answered: send it again in a moment.",
            code=ErrorCode.IDEMPOTENCY_IN_FLIGHT,
            headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
        )
    if found:
        await session.execute(delete(IdempotencyKey).where(_SAME), given)
    return None


_SAME = and_(
    IdempotencyKey.tenant_id == bindparam("tenant"),
    IdempotencyKey.user_id == bindparam("user"),
    IdempotencyKey.route == bindparam("route"),
    IdempotencyKey.key == bindparam("key"),
)
_FIND = CompiledStatement[IdempotencyKey](select(IdempotencyKey).where(_SAME), IdempotencyKey)
_LOCK = CompiledStatement[bool](select(func.pg_try_advisory_xact_lock(bindparam("number", type_=BigInteger))))


def _lock_number(actor: Actor, route: str, key: str) -> int:
    """64 bits; two keys with one number would at worst answer `idempotency_in_flight` once too often."""
    scope = f"{actor.tenant_id} {actor.user_id} {route} {key}"
    return int.from_bytes(sha256(scope.encode()).digest()[:8], signed=True)


def _answer_again(found: IdempotencyKey, request: BaseModel) -> Answer:
    if found.fingerprint != _fingerprint(request):
        raise Invalid(
            f"This {HEADER} was used with another body: send the same body, or a new key for a new run.",
            code=ErrorCode.IDEMPOTENCY_KEY_REUSED,
            errors=[{"field": HEADER, "message": "a key not used with another body", "given": repr(found.key)[:100]}],
        )
    return Answer(found.run_id, found.status, {**found.headers, **REPLAYED}, found.body)


def to_remember(actor: Actor, route: str, key: str, request: BaseModel, answer: Answer) -> IdempotencyKey:
    """The answer's row for repeated requests; `recall` has returned None before, in the same transaction."""
    return IdempotencyKey(
        tenant_id=actor.tenant_id,
        user_id=actor.user_id,
        route=route,
        key=key,
        fingerprint=_fingerprint(request),
        run_id=answer.run_id,
        status=answer.status,
        headers=answer.headers,
        body=answer.body,
        expires_at=now() + LIFETIME,
    )


def _fingerprint(request: BaseModel) -> bytes:
    # Without defaults: a release that adds an optional field must recognise keys of the release before.
    canonical = json.dumps(request.model_dump(exclude_defaults=True), sort_keys=True, default=str)
    return sha256(canonical.encode()).digest()


async def delete_expired(database: Database) -> None:
    async with database.identity() as session:
        await session.execute(delete(IdempotencyKey).where(IdempotencyKey.expires_at < now()))
