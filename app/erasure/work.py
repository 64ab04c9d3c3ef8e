"""What a worker does for an erasure, one batch at a time; whatever it has done may be done again."""

import logging
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, delete, exists, func, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.broker import Broker
from app.conversations.models import Conversation
from app.db import Database
from app.erasure.models import Erasure, ErasureKind, ErasureStatus, ObjectRemoval
from app.erasure.rows import Deletion, delete_conversations, delete_exports, delete_rest, delete_uploads, leave_prefix
from app.identity import audit
from app.identity.audit import Action, AuditEntry, TargetType
from app.identity.models import Invitation, Tenant, User
from app.runs.models import Run
from app.runs.provider_objects import ProviderObject
from app.runs.stopping import stop
from app.settings import Settings

log = logging.getLogger(__name__)

AT_ONCE = timedelta(0)
# Until runs that were stopped have ended, or objects and the provider's copies are gone.
WAIT = timedelta(seconds=1)
AUDIT_ENTRIES_AT_ONCE = 1000


DUE = Erasure.completed_at.is_(None) & (Erasure.lease_until <= func.now())


async def erase_rows(database: Database, broker: Broker, settings: Settings) -> bool:
    """Do the next step of the erasure that has waited longest; False where none is due."""
    part = await _claim(database, timedelta(seconds=settings.run_lease_seconds))
    if part is None:
        return False
    pause = await _complete(database, part) if part.rows_gone_at else await _erase(database, broker, settings, part)
    async with database.identity() as session:
        await session.execute(
            update(Erasure)
            .where(Erasure.id == part.id, Erasure.lease_until == part.lease_until)
            .values(lease_until=func.clock_timestamp() + pause)
        )
    return True


async def _claim(database: Database, lease: timedelta) -> Erasure | None:
    due = select(Erasure.id).where(DUE).order_by(Erasure.lease_until).limit(1).with_for_update(skip_locked=True)
    async with database.identity() as session:
        return await session.scalar(
            update(Erasure)
            .where(Erasure.id == due.scalar_subquery())
            .values(status=ErasureStatus.RUNNING, lease_until=func.clock_timestamp() + lease)
            .returning(Erasure)
        )


async def _erase(database: Database, broker: Broker, settings: Settings, part: Erasure) -> timedelta:
    """One batch of rows; how long to wait for the next."""
    if part.tenant_id is None:
        return await _erase_account(database, part)
    everything, user_id = part.kind == ErasureKind.TENANT, part.user_id
    deletion = Deletion.of(settings, part.tenant_id, part.id, everything=everything)
    async with database.tenant(part.tenant_id) as session:
        # They tell what the provider has of them as they end.
        if await stop(session, broker, true() if user_id is None else Run.user_id == user_id):
            return WAIT
        theirs = true() if user_id is None else Conversation.user_id == user_id
        rows = (
            await delete_conversations(session, deletion, theirs)
            or await delete_uploads(session, deletion, user_id)
            or await delete_exports(session, deletion, user_id)
        )
        if not rows and everything:
            rows = await delete_rest(session, deletion)
        await _count(session, part.id, rows)
        if not rows and not everything:
            await _say_rows_are_gone(session, part.id)
    if rows or not everything:
        return AT_ONCE
    return await _erase_tenant(database, part, deletion)


async def _erase_tenant(database: Database, part: Erasure, deletion: Deletion) -> timedelta:
    """What only identity may delete, and only of a tenant whose erasure was requested."""
    async with database.identity() as session:
        oldest = select(AuditEntry.id).where(AuditEntry.tenant_id == deletion.tenant_id).limit(AUDIT_ENTRIES_AT_ONCE)
        rows = await _deleted(session, delete(AuditEntry).where(AuditEntry.id.in_(oldest)))
        # All else that names the tenant goes with its row.
        rows = rows or await _deleted(session, delete(Tenant).where(Tenant.id == deletion.tenant_id))
        await _count(session, part.id, rows)
    if not rows:
        async with database.tenant(deletion.tenant_id) as session:
            await leave_prefix(session, deletion, settled=True)
            await _say_rows_are_gone(session, part.id)
    return AT_ONCE


async def _erase_account(database: Database, part: Erasure) -> timedelta:
    """The user's own row, once nothing of theirs is left in a tenant."""
    others = exists().where(
        Erasure.receipt_hash == part.receipt_hash, Erasure.id != part.id, Erasure.rows_gone_at.is_(None)
    )
    async with database.identity() as session:
        if await session.scalar(select(others)):
            return WAIT
        address = select(User.email).where(User.id == part.user_id).scalar_subquery()
        rows = await _deleted(session, delete(Invitation).where(Invitation.email == address))
        rows += await _deleted(session, delete(User).where(User.id == part.user_id))
        await _count(session, part.id, rows)
        await _say_rows_are_gone(session, part.id)
    return AT_ONCE


async def _complete(database: Database, part: Erasure) -> timedelta:
    """Where the store and the provider have nothing left of it."""
    async with database.identity() as session:
        left = exists().where(ObjectRemoval.erasure_id == part.id), exists().where(ProviderObject.erasure_id == part.id)
        if await session.scalar(select(left[0] | left[1])):
            return WAIT
        if part.kind != ErasureKind.MEMBER:
            await _end(session, part.id)
    if part.kind == ErasureKind.MEMBER and part.tenant_id is not None and part.user_id is not None:
        async with database.tenant(part.tenant_id) as session:
            await _end(session, part.id)
            # The tenant may be gone itself by now.
            if await session.scalar(select(Tenant.id)) is not None:
                audit.record(
                    session, part.tenant_id, audit.SYSTEM, Action.ERASURE_COMPLETED, TargetType.USER, part.user_id
                )
    log.info("erasure.completed", extra={"erasure_id": str(part.id), "kind": part.kind})
    return AT_ONCE


async def _say_rows_are_gone(session: AsyncSession, part_id: UUID) -> None:
    await session.execute(update(Erasure).where(Erasure.id == part_id).values(rows_gone_at=func.now()))


async def _end(session: AsyncSession, part_id: UUID) -> None:
    values = {"status": ErasureStatus.COMPLETED, "completed_at": func.now()}
    await session.execute(update(Erasure).where(Erasure.id == part_id).values(values))


async def _count(session: AsyncSession, part_id: UUID, rows: int) -> None:
    if rows:
        await session.execute(update(Erasure).where(Erasure.id == part_id).values(rows=Erasure.rows + rows))


async def _deleted(session: AsyncSession, statement: Any) -> int:
    result = await session.execute(statement, execution_options={"synchronize_session": False})
    return cast(CursorResult[Any], result).rowcount
