"""Order in the store: objects are compared with rows, and what belongs to nobody is deleted at a second look."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import delete, null, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus, Tombstone
from app.attachments.spool import Spool
from app.attachments.variants import stored_keys
from app.db import Database, now
from app.errors import Conflict
from app.identity.models import Tenant
from app.settings import Settings
from app.storage import keys
from app.storage.service import leftover_drafts
from app.storage.store import Store, StoredObject

log = logging.getLogger(__name__)

# What is younger is left alone, and what was noted is deleted no sooner: clocks differ, and deletes take their time.
GRACE = timedelta(hours=1)
# No upload takes as long: whoever sent it has given up, and the process that took it has died.
UPLOAD_LOST_AFTER = timedelta(hours=1)
WAITING_TOLD_AFTER = timedelta(days=1)
BATCH = 500
LOCK_KEY = int.from_bytes(b"easel gc")

OBJECT_MISSING = {"code": "object_missing", "detail": "The store no longer has this picture."}
LOST = {"code": "lost", "detail": "The upload ended before its picture was stored; send it again."}


class Kind(StrEnum):
    ORPHAN = "objects without a row"
    PREVIEW = "expired previews"
    MISSING = "rows without an object"
    UPLOAD = "uploads that never ended"
    WAITING = "pictures that wait for a day"
    RETURNED = "objects that are there after all"
    DRAFT = "leftover drafts"


# What a row says from then on. A waiting picture may lie in another machine's spool, so it is only told of.
_VERDICTS: dict[Kind, dict[str, Any]] = {
    Kind.MISSING: {"status": AttachmentStatus.FAILED, "error": OBJECT_MISSING},
    Kind.UPLOAD: {"status": AttachmentStatus.FAILED, "error": LOST},
    Kind.RETURNED: {"status": AttachmentStatus.STORED, "error": null()},
}


@dataclass
class Tally:
    """`noted` were marked for a later look to delete; `done` were deleted or put right."""

    found: int = 0
    noted: int = 0
    done: int = 0


Report = dict[Kind, Tally]


@dataclass(frozen=True)
class Row:
    id: UUID
    kind: AttachmentKind
    status: AttachmentStatus
    storage_key: str


@dataclass(frozen=True)
class Look:
    """One look at everything; without `apply` nothing is changed."""

    database: Database
    store: Store
    apply: bool
    grace: timedelta
    preview_age: timedelta
    spooled: frozenset[UUID]
    started: datetime = field(default_factory=now)
    report: Report = field(default_factory=lambda: {kind: Tally() for kind in Kind})


async def reconcile(
    database: Database, store: Store, spool: Spool, settings: Settings, *, apply: bool, grace: timedelta = GRACE
) -> Report:
    """Raises Conflict while another is at work, and StorageError where the store does not answer.

    One call to the store at a time, so that its threads are there for requests, and a few hundred keys in memory.
    """
    # A preview is shown until its run's stream expires, and the stream lives on from its last event.
    shown = timedelta(seconds=settings.stream_ttl_seconds + settings.run_timeout_seconds)
    spooled = frozenset(waiting.object_id for waiting in spool.waiting())
    look = Look(database, store, apply, grace, shown, spooled)
    async with _alone(database):
        async for tenant_id in _tenants(database):
            await _look_at_objects(look, tenant_id)
            await _look_at_rows(look, tenant_id)
        await asyncio.to_thread(_look_at_drafts, look, settings)
    counts = {kind.name.lower(): vars(tally) for kind, tally in look.report.items() if tally.found}
    log.info("store.reconciled", extra={"apply": apply, "counts": counts})
    return look.report


@asynccontextmanager
async def _alone(database: Database) -> AsyncGenerator[None]:
    """By a lock of the session, as no transaction may stay open for so long."""
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        if not await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
            raise Conflict("Another reconcile is at work; wait for its end.", code="reconcile_running")
        try:
            yield
        finally:
            await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})


async def _tenants(database: Database) -> AsyncIterator[UUID]:
    """Of this database alone: prefixes of others, who may share the bucket, are never listed."""
    after = UUID(int=0)
    while True:
        async with database.identity() as session:
            page = (
                await session.scalars(select(Tenant.id).where(Tenant.id > after).order_by(Tenant.id).limit(BATCH))
            ).all()
        for tenant_id in page:
            yield tenant_id
        if len(page) < BATCH:
            return
        after = page[-1]


async def _look_at_objects(look: Look, tenant_id: UUID) -> None:
    batch: list[StoredObject] = []
    async for item in look.store.list(keys.tenant_prefix(tenant_id)):
        if item.modified_at <= now() - look.grace:
            batch.append(item)
        if len(batch) == BATCH:
            await _judge(look, tenant_id, batch)
            batch.clear()
    if batch:
        await _judge(look, tenant_id, batch)
    if look.apply:
        # What was noted and not seen again is gone, or belongs to somebody.
        async with look.database.tenant(tenant_id) as session:
            await session.execute(delete(Tombstone).where(Tombstone.seen_at < look.started))


async def _judge(look: Look, tenant_id: UUID, items: Sequence[StoredObject]) -> None:
    previews = [item for item in items if keys.parse(item.key)[0] == keys.PREVIEWS]
    pictures = [item.key for item in items if keys.parse(item.key)[0] != keys.PREVIEWS]
    # Asked after the listing: a row is there before its object, and no key is ever used again.
    owned = await _owned_keys(look, tenant_id, pictures)
    expired = [item.key for item in previews if item.modified_at <= now() - look.preview_age]
    for kind, found in ((Kind.ORPHAN, [key for key in pictures if key not in owned]), (Kind.PREVIEW, expired)):
        look.report[kind].found += len(found)
        if look.apply and found:
            await _condemn(look, tenant_id, kind, found)


async def _owned_keys(look: Look, tenant_id: UUID, found: Sequence[str]) -> set[str]:
    columns = (Attachment.id, Attachment.storage_key, Attachment.variants)
    object_ids = {keys.parse(key)[1] for key in found}
    async with look.database.tenant(tenant_id) as session:
        rows = (await session.execute(select(*columns).where(Attachment.id.in_(object_ids)))).all()
    return {key for row in rows for key in (row.storage_key, *stored_keys(tenant_id, row.id, row.variants))}


async def _condemn(look: Look, tenant_id: UUID, kind: Kind, found: Sequence[str]) -> None:
    """Note what is seen for the first time, delete what was noted long enough ago."""
    seen = {"tenant_id": tenant_id, "noted_at": look.started, "seen_at": look.started}
    note = insert(Tombstone).values([{**seen, "key": key} for key in found])
    note = note.on_conflict_do_update(
        index_elements=[Tombstone.tenant_id, Tombstone.key], set_={"seen_at": note.excluded.seen_at}
    )
    async with look.database.tenant(tenant_id) as session:
        noted = (await session.execute(note.returning(Tombstone.key, Tombstone.noted_at))).all()
    tally = look.report[kind]
    tally.noted += sum(tombstone.noted_at == look.started for tombstone in noted)
    ripe = [tombstone.key for tombstone in noted if tombstone.noted_at < look.started - look.grace]
    for key in ripe:
        await look.store.delete(key)
        tally.done += 1
    async with look.database.tenant(tenant_id) as session:
        await session.execute(delete(Tombstone).where(Tombstone.key.in_(ripe)))


async def _look_at_rows(look: Look, tenant_id: UUID) -> None:
    folders = {AttachmentKind.GENERATED: keys.IMAGES, AttachmentKind.UPLOAD: keys.UPLOADS}
    for kind, folder in folders.items():
        objects = look.store.list(f"{keys.tenant_prefix(tenant_id)}{folder}/")
        async for row, listed in _compared(_rows(look, tenant_id, kind), objects):
            verdict = _verdict(look, row, listed=listed)
            if verdict is not None:
                await _settle(look, tenant_id, row, verdict)


async def _rows(look: Look, tenant_id: UUID, kind: AttachmentKind) -> AsyncIterator[Row]:
    """Rows that should have an object, or may have it after all, in the order of their ids and so of their keys."""
    pending_after = UPLOAD_LOST_AFTER if kind == AttachmentKind.UPLOAD else WAITING_TOLD_AFTER
    considered = or_(
        Attachment.status == AttachmentStatus.STORED,
        Attachment.error["code"].astext.in_([OBJECT_MISSING["code"], LOST["code"]]),
        (Attachment.status == AttachmentStatus.PENDING) & (Attachment.created_at < look.started - pending_after),
    )
    columns = (Attachment.id, Attachment.kind, Attachment.status, Attachment.storage_key)
    old = (Attachment.kind == kind, Attachment.created_at <= now() - look.grace)
    after = UUID(int=0)
    while True:
        page = select(*columns).where(*old, considered, Attachment.id > after).order_by(Attachment.id).limit(BATCH)
        async with look.database.tenant(tenant_id) as session:
            rows = [Row(*row) for row in (await session.execute(page)).all()]
        for row in rows:
            yield row
        if len(rows) < BATCH:
            return
        after = rows[-1].id


async def _compared(rows: AsyncIterator[Row], objects: AsyncIterator[StoredObject]) -> AsyncIterator[tuple[Row, bool]]:
    """Each row, and whether its object was listed, by going along both once."""
    listed = await anext(objects, None)
    async for row in rows:
        while listed is not None and listed.key < row.storage_key:
            listed = await anext(objects, None)
        yield row, listed is not None and listed.key == row.storage_key


def _verdict(look: Look, row: Row, *, listed: bool) -> Kind | None:
    """What is wrong with the row, if anything."""
    if row.status == AttachmentStatus.STORED:
        return None if listed else Kind.MISSING
    if listed:
        return Kind.RETURNED
    if row.status == AttachmentStatus.FAILED or row.id in look.spooled:
        return None
    return Kind.UPLOAD if row.kind == AttachmentKind.UPLOAD else Kind.WAITING


async def _settle(look: Look, tenant_id: UUID, row: Row, verdict: Kind) -> None:
    """Count the row, and put it right, if it is still as it was read and its object still is, or is not, there."""
    there = [item.key async for item in look.store.list(row.storage_key)]
    if bool(there) != (verdict == Kind.RETURNED):
        return
    unchanged = (Attachment.id == row.id, Attachment.status == row.status)
    values = _VERDICTS.get(verdict) if look.apply else None
    async with look.database.tenant(tenant_id) as session:
        if values is None:
            found = await session.scalar(select(Attachment.id).where(*unchanged))
        else:
            found = await session.scalar(update(Attachment).where(*unchanged).values(values).returning(Attachment.id))
    if found is not None:
        look.report[verdict].found += 1
        look.report[verdict].done += values is not None


def _look_at_drafts(look: Look, settings: Settings) -> None:
    drafts = leftover_drafts(settings, before=now() - look.grace)
    tally = look.report[Kind.DRAFT]
    tally.found += len(drafts)
    if look.apply:
        for draft in drafts:
            draft.unlink(missing_ok=True)
        tally.done += len(drafts)
