"""Compares the store's objects with the rows; an object without a row is marked first, and deleted by a later run."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import cast, delete, null, or_, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments.models import Attachment, AttachmentError, AttachmentKind, AttachmentStatus, OrphanCandidate
from app.attachments.spool import Spool
from app.attachments.variants import stored_keys
from app.db import Database, now
from app.error_codes import ErrorCode
from app.errors import Conflict
from app.identity.models import Tenant
from app.settings import Settings
from app.storage import keys
from app.storage.memory import leftover_temporary_files
from app.storage.store import Store, StoredObject

log = logging.getLogger(__name__)

# Younger objects are left alone, and marked ones are deleted no sooner: clocks differ, and deletes take time.
GRACE = timedelta(hours=1)
# No upload takes so long: its client has given up, and the process that received it has died.
UPLOAD_LOST_AFTER = timedelta(hours=1)
WAITING_REPORTED_AFTER = timedelta(days=1)
BATCH = 500
LOCK_KEY = int.from_bytes(b"easel gc")

OBJECT_MISSING = AttachmentError(code=ErrorCode.OBJECT_MISSING, detail="The object storage no longer has this image.")
LOST = AttachmentError(
    code=ErrorCode.UPLOAD_LOST, detail="The upload ended before its image was stored; send it again."
)


class Kind(StrEnum):
    ORPHAN = "objects without a row"
    PREVIEW = "expired previews"
    MISSING = "rows without an object"
    UPLOAD = "uploads that never ended"
    WAITING = "images that wait for a day"
    RETURNED = "objects that are there after all"
    TEMPORARY = "leftover temporary files"


# The new columns of a row. A waiting image may lie in another machine's spool, so it is only reported.
_CORRECTIONS: dict[Kind, dict[str, Any]] = {
    Kind.MISSING: {"status": AttachmentStatus.FAILED, "error": OBJECT_MISSING},
    Kind.UPLOAD: {"status": AttachmentStatus.FAILED, "error": LOST},
    Kind.RETURNED: {"status": AttachmentStatus.STORED, "error": null()},
}


@dataclass
class Count:
    """`marked` are for a later run to delete; `done` were deleted or corrected."""

    found: int = 0
    marked: int = 0
    done: int = 0


Report = dict[Kind, Count]
# Which of these keys, all in one folder and of the session's tenant, have a row.
OwnedKeys = Callable[[AsyncSession, Sequence[str]], Awaitable[set[str]]]


@dataclass(frozen=True)
class Row:
    id: UUID
    kind: AttachmentKind
    status: AttachmentStatus
    storage_key: str


@dataclass(frozen=True)
class ReconcileRun:
    """One comparison of all objects and rows; without `apply` nothing is changed."""

    database: Database
    store: Store
    apply: bool
    grace: timedelta
    preview_age: timedelta
    spooled: frozenset[UUID]
    owners: Mapping[str, OwnedKeys]
    started: datetime = field(default_factory=now)
    report: Report = field(default_factory=lambda: {kind: Count() for kind in Kind})


async def reconcile(
    database: Database,
    store: Store,
    spool: Spool,
    settings: Settings,
    owners: Mapping[str, OwnedKeys],
    *,
    apply: bool,
    grace: timedelta = GRACE,
) -> Report:
    """Raises Conflict while another is at work, and StorageError where the store does not answer.

    `owners` has a function for each folder that holds no images.

    One call to the store at a time, so that its threads are there for requests, and a few hundred keys in memory.
    """
    # A preview is shown until its run's stream expires, and the stream lives on from its last event.
    shown = timedelta(seconds=settings.stream_ttl_seconds + settings.run_timeout_seconds)
    spooled = frozenset(waiting.object_id for waiting in spool.waiting())
    run = ReconcileRun(database, store, apply, grace, shown, spooled, owners)
    async with _alone(database):
        async for tenant_id in _tenants(database):
            await _compare_objects(run, tenant_id)
            await _compare_rows(run, tenant_id)
        await asyncio.to_thread(_find_temporary_files, run, settings)
    counts = {kind.name.lower(): vars(count) for kind, count in run.report.items() if count.found}
    log.info("store.reconciled", extra={"apply": apply, "counts": counts})
    return run.report


@asynccontextmanager
async def _alone(database: Database) -> AsyncGenerator[None]:
    """By a lock of a transaction: a session's would stay behind at a pooler, with a connection that others use.

    A transaction that has read nothing keeps no row from being vacuumed, however long it lasts.
    """
    async with database.engine.begin() as connection:
        # Some hosts end a transaction that does nothing.
        await connection.execute(text("SELECT set_config('idle_in_transaction_session_timeout', '0', true)"))
        if not await connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": LOCK_KEY}):
            raise Conflict("Another reconcile is at work; wait for its end.", code=ErrorCode.RECONCILE_RUNNING)
        yield


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


async def _compare_objects(run: ReconcileRun, tenant_id: UUID) -> None:
    batch: list[StoredObject] = []
    async for item in run.store.list(keys.tenant_prefix(tenant_id)):
        if item.modified_at <= now() - run.grace:
            batch.append(item)
        if len(batch) == BATCH:
            await _classify_objects(run, tenant_id, batch)
            batch.clear()
    if batch:
        await _classify_objects(run, tenant_id, batch)
    if run.apply:
        # A candidate that was not seen again is deleted, or has a row now.
        async with run.database.tenant(tenant_id) as session:
            await session.execute(delete(OrphanCandidate).where(OrphanCandidate.seen_at < run.started))


async def _classify_objects(run: ReconcileRun, tenant_id: UUID, items: Sequence[StoredObject]) -> None:
    previews = [item for item in items if keys.parse(item.key)[0] == keys.PREVIEWS]
    others = [item.key for item in items if keys.parse(item.key)[0] != keys.PREVIEWS]
    # Queried after the listing: a row is inserted before its object is stored, and no key is used twice.
    owned = await _owned_keys(run, tenant_id, others)
    expired = [item.key for item in previews if item.modified_at <= now() - run.preview_age]
    for kind, found in ((Kind.ORPHAN, [key for key in others if key not in owned]), (Kind.PREVIEW, expired)):
        run.report[kind].found += len(found)
        if run.apply and found:
            await _mark_or_delete(run, tenant_id, kind, found)


async def _owned_keys(run: ReconcileRun, tenant_id: UUID, found: Sequence[str]) -> set[str]:
    columns = (Attachment.id, Attachment.storage_key, Attachment.variants)
    object_ids = {keys.parse(key)[1] for key in found}
    owned: set[str] = set()
    async with run.database.tenant(tenant_id) as session:
        rows = (await session.execute(select(*columns).where(Attachment.id.in_(object_ids)))).all()
        for folder, owned_keys in run.owners.items():
            owned |= await owned_keys(session, [key for key in found if keys.parse(key)[0] == folder])
    return owned | {key for row in rows for key in (row.storage_key, *stored_keys(tenant_id, row.id, row.variants))}


async def _mark_or_delete(run: ReconcileRun, tenant_id: UUID, kind: Kind, found: Sequence[str]) -> None:
    """Mark objects that are found for the first time, delete those that were marked long enough ago."""
    seen = {"tenant_id": tenant_id, "marked_at": run.started, "seen_at": run.started}
    mark = insert(OrphanCandidate).values([{**seen, "key": key} for key in found])
    mark = mark.on_conflict_do_update(
        index_elements=[OrphanCandidate.tenant_id, OrphanCandidate.key], set_={"seen_at": mark.excluded.seen_at}
    )
    async with run.database.tenant(tenant_id) as session:
        # Held until they are marked; an erasure, which removes the objects as well, may have deleted it meanwhile.
        tenant = select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(read=True, key_share=True)
        if await session.scalar(tenant) is None:
            return
        marked = (await session.execute(mark.returning(OrphanCandidate.key, OrphanCandidate.marked_at))).all()
    count = run.report[kind]
    count.marked += sum(candidate.marked_at == run.started for candidate in marked)
    expired = [candidate.key for candidate in marked if candidate.marked_at < run.started - run.grace]
    for key in expired:
        await run.store.delete(key)
        count.done += 1
    async with run.database.tenant(tenant_id) as session:
        await session.execute(delete(OrphanCandidate).where(OrphanCandidate.key.in_(expired)))


async def _compare_rows(run: ReconcileRun, tenant_id: UUID) -> None:
    folders = {AttachmentKind.GENERATED: keys.IMAGES, AttachmentKind.UPLOAD: keys.UPLOADS}
    for kind, folder in folders.items():
        objects = run.store.list(f"{keys.tenant_prefix(tenant_id)}{folder}/")
        async for row, listed in _compared(_rows(run, tenant_id, kind), objects):
            fault = _classify(run, row, listed=listed)
            if fault is not None:
                await _correct(run, tenant_id, row, fault)


async def _rows(run: ReconcileRun, tenant_id: UUID, kind: AttachmentKind) -> AsyncIterator[Row]:
    """Rows that should have an object, or may have it after all, in the order of their ids and so of their keys."""
    pending_after = UPLOAD_LOST_AFTER if kind == AttachmentKind.UPLOAD else WAITING_REPORTED_AFTER
    considered = or_(
        Attachment.status == AttachmentStatus.STORED,
        cast(Attachment.error, JSONB)["code"].astext.in_([OBJECT_MISSING.code, LOST.code]),
        (Attachment.status == AttachmentStatus.PENDING) & (Attachment.created_at < run.started - pending_after),
    )
    columns = (Attachment.id, Attachment.kind, Attachment.status, Attachment.storage_key)
    old = (Attachment.kind == kind, Attachment.created_at <= now() - run.grace)
    after = UUID(int=0)
    while True:
        page = select(*columns).where(*old, considered, Attachment.id > after).order_by(Attachment.id).limit(BATCH)
        async with run.database.tenant(tenant_id) as session:
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


def _classify(run: ReconcileRun, row: Row, *, listed: bool) -> Kind | None:
    """What is wrong with the row, if anything."""
    if row.status == AttachmentStatus.STORED:
        return None if listed else Kind.MISSING
    if listed:
        return Kind.RETURNED
    if row.status == AttachmentStatus.FAILED or row.id in run.spooled:
        return None
    return Kind.UPLOAD if row.kind == AttachmentKind.UPLOAD else Kind.WAITING


async def _correct(run: ReconcileRun, tenant_id: UUID, row: Row, kind: Kind) -> None:
    """Count the row, and put it right, if it is still as it was read and its object still is, or is not, there."""
    there = [item.key async for item in run.store.list(row.storage_key)]
    if bool(there) != (kind == Kind.RETURNED):
        return
    unchanged = (Attachment.id == row.id, Attachment.status == row.status)
    values = _CORRECTIONS.get(kind) if run.apply else None
    async with run.database.tenant(tenant_id) as session:
        if values is None:
            found = await session.scalar(select(Attachment.id).where(*unchanged))
        else:
            found = await session.scalar(update(Attachment).where(*unchanged).values(values).returning(Attachment.id))
    if found is not None:
        run.report[kind].found += 1
        run.report[kind].done += values is not None


def _find_temporary_files(run: ReconcileRun, settings: Settings) -> None:
    paths = leftover_temporary_files(settings, before=now() - run.grace)
    count = run.report[Kind.TEMPORARY]
    count.found += len(paths)
    if run.apply:
        for path in paths:
            path.unlink(missing_ok=True)
        count.done += len(paths)
