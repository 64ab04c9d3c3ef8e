"""Removing what deleted rows leave behind: objects in the store, responses and files at the provider.

The rows of both tables are the list of what is to do: a worker that begins with one puts it off for a lease, and
deletes it when it is done, so that nothing is lost with a worker. Done twice it does no harm.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.erasure.models import Erasure, ObjectRemoval
from app.runs.provider_objects import ProviderObject, ProviderObjectKind
from app.storage.store import StorageError, Store, StoredObject
from app.usage.models import CallState, ProviderCall

log = logging.getLogger(__name__)

REMOVALS_AT_ONCE = 20
# Of the store's ten threads; the others are for requests.
OBJECTS_AT_ONCE = 6
COUNTED_AT_ONCE = 120
RETRY_AFTER = timedelta(seconds=5)

OBJECTS_DUE = ObjectRemoval.due_at <= func.now()
PROVIDER_DUE = ProviderObject.run_id.is_(None) & (ProviderObject.due_at <= func.now())

Delete = Callable[[ProviderObjectKind, str], Awaitable[bool]]


async def remove_objects(database: Database, store: Store, lease: timedelta) -> bool:
    """Those of the first removals that are due; False where none is, or the store does not answer."""
    due = select(ObjectRemoval.tenant_id, ObjectRemoval.prefix).where(OBJECTS_DUE)
    first = due.order_by(ObjectRemoval.due_at).limit(REMOVALS_AT_ONCE).with_for_update(skip_locked=True).cte("due")
    async with database.identity() as session:
        claimed = await session.scalars(
            update(ObjectRemoval)
            .where(tuple_(ObjectRemoval.tenant_id, ObjectRemoval.prefix).in_(select(first)))
            .values(due_at=func.clock_timestamp() + lease)
            .returning(ObjectRemoval)
        )
        removals = claimed.all()
    slots = asyncio.Semaphore(OBJECTS_AT_ONCE)
    done = await asyncio.gather(*(_remove(database, store, slots, lease, removal) for removal in removals))
    return bool(done) and all(done)


async def _remove(
    database: Database, store: Store, slots: asyncio.Semaphore, lease: timedelta, removal: ObjectRemoval
) -> bool:
    same = (ObjectRemoval.tenant_id == removal.tenant_id, ObjectRemoval.prefix == removal.prefix)
    due_at = removal.due_at
    try:
        listed = store.list(removal.prefix, deleted=True)
        while objects := await _next_batch(slots, listed):
            await asyncio.gather(*(_delete(store, slots, item.key) for item in objects))
            async with database.identity() as session:
                await _count(
                    session,
                    removal.erasure_id,
                    objects=len(objects),
                    size_bytes=sum(item.size_bytes for item in objects),
                )
                renewed = update(ObjectRemoval).where(*same, ObjectRemoval.due_at == due_at)
                renewed = renewed.values(due_at=func.clock_timestamp() + lease).returning(ObjectRemoval.due_at)
                due_at = await session.scalar(renewed) or due_at
    except StorageError as error:
        log.warning("objects.not_removed", extra={"tenant_id": str(removal.tenant_id), "error": str(error)})
        await _put_off(database, ObjectRemoval, *same, ObjectRemoval.due_at == due_at)
        return False
    async with database.identity() as session:
        # Not where it was put off meanwhile, for what has yet to land.
        await session.execute(delete(ObjectRemoval).where(*same, ObjectRemoval.due_at == due_at))
    return True


async def _next_batch(slots: asyncio.Semaphore, listed: AsyncIterator[StoredObject]) -> list[StoredObject]:
    batch: list[StoredObject] = []
    async with slots:
        async for item in listed:
            batch.append(item)
            if len(batch) == COUNTED_AT_ONCE:
                break
    return batch


async def _delete(store: Store, slots: asyncio.Semaphore, key: str) -> None:
    async with slots:
        await store.delete(key)


async def remove_from_provider(database: Database, delete_there: Delete, lease: timedelta) -> bool:
    """The first responses and files whose run is gone; False where there is none, or the provider does not answer.

    Not the response of a call that has yet to be booked: it says what the call used.
    """
    key = (ProviderObject.tenant_id, ProviderObject.provider_id)
    named = ProviderCall.response_id == ProviderObject.provider_id
    unsettled = exists(select(ProviderCall.number).where(named, ProviderCall.state != CallState.SETTLED))
    due = select(*key).where(PROVIDER_DUE, ~unsettled)
    first = due.order_by(ProviderObject.due_at).limit(REMOVALS_AT_ONCE).with_for_update(skip_locked=True).cte("due")
    async with database.identity() as session:
        claimed = await session.scalars(
            update(ProviderObject)
            .where(tuple_(*key).in_(select(first)))
            .values(due_at=func.clock_timestamp() + lease)
            .returning(ProviderObject)
        )
        found = claimed.all()
    for row in found:
        same = (ProviderObject.tenant_id == row.tenant_id, ProviderObject.provider_id == row.provider_id)
        if not await delete_there(row.kind, row.provider_id):
            await _put_off(database, ProviderObject, ProviderObject.run_id.is_(None), *same)
            return False
        async with database.identity() as session:
            await session.execute(delete(ProviderObject).where(*same))
            await _count(session, row.erasure_id, provider=1)
    return bool(found)


async def _put_off(
    database: Database, table: type[ObjectRemoval] | type[ProviderObject], *conditions: ColumnElement[bool]
) -> None:
    async with database.identity() as session:
        due_at = func.clock_timestamp() + RETRY_AFTER
        await session.execute(update(table).where(*conditions).values(due_at=due_at))


async def _count(session: AsyncSession, erasure_id: UUID | None, **added: int) -> None:
    if erasure_id is not None:
        more = {name: getattr(Erasure, name) + number for name, number in added.items()}
        await session.execute(update(Erasure).where(Erasure.id == erasure_id).values(more))
