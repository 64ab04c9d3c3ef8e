"""Pictures into storage, and the rows that know of them."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.attachments.spool import Spool
from app.db import Database, after_commit, uuid7
from app.errors import NotFound
from app.identity.service import Actor
from app.images.inspect import ImageFacts
from app.storage import keys
from app.storage.store import StorageError, Store

log = logging.getLogger(__name__)

# The text's end waits no longer for a store that does not answer.
PUT_SECONDS = 4.0


@dataclass(frozen=True)
class Origin:
    """The turn a picture belongs to."""

    tenant_id: UUID
    conversation_id: UUID
    run_id: UUID
    message_id: UUID
    user_id: UUID
    agent_key: str


@dataclass(frozen=True)
class Picture:
    """A generated picture in memory; `options` are those the provider reports and those we asked."""

    tool_call_id: str
    data: bytes
    facts: ImageFacts
    sha256: str
    revised_prompt: str | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """Why a picture is not kept."""

    code: str
    detail: str


async def ingest(database: Database, store: Store, spool: Spool, origin: Origin, picture: Picture) -> Attachment:
    """Row pending -> object -> row stored; where the store fails the row stays pending and the bytes spooled."""
    row = await _insert(database, origin, picture, AttachmentStatus.PENDING)
    if row.status == AttachmentStatus.STORED:
        return row
    try:
        async with asyncio.timeout(PUT_SECONDS):
            await store.put(row.storage_key, picture.data, mime_type=row.mime_type)
    except (StorageError, TimeoutError) as error:
        log.error(
            "image.ingest_failed",
            extra={
                "tenant_id": str(origin.tenant_id),
                "run_id": str(origin.run_id),
                "tool_call_id": picture.tool_call_id,
                "object_id": str(row.id),
                "error": str(error) or type(error).__name__,
            },
        )
        await spool.keep(origin.tenant_id, row.id, picture.data)
        return row
    await mark_stored(database, origin.tenant_id, row.id)
    row.status = AttachmentStatus.STORED
    return row


async def refuse(database: Database, origin: Origin, picture: Picture, refusal: Refusal) -> Attachment:
    """A row that says why the picture is not kept."""
    error = {"code": refusal.code, "detail": refusal.detail}
    return await _insert(database, origin, picture, AttachmentStatus.FAILED, error)


async def _insert(
    database: Database,
    origin: Origin,
    picture: Picture,
    status: AttachmentStatus,
    error: dict[str, Any] | None = None,
) -> Attachment:
    """The picture's one row, made now or by an attempt before."""
    values = {**_values(origin, picture), "status": status, "error": error}
    async with database.tenant(origin.tenant_id) as session:
        await session.execute(
            insert(Attachment)
            .values(values)
            .on_conflict_do_nothing(index_elements=["tenant_id", "run_id", "tool_call_id"])
        )
        found = await session.scalars(
            select(Attachment).where(
                Attachment.run_id == origin.run_id, Attachment.tool_call_id == picture.tool_call_id
            )
        )
        return found.one()


def _values(origin: Origin, picture: Picture) -> dict[str, Any]:
    object_id = uuid7()
    return {
        "id": object_id,
        "tenant_id": origin.tenant_id,
        "conversation_id": origin.conversation_id,
        "run_id": origin.run_id,
        "message_id": origin.message_id,
        "user_id": origin.user_id,
        "agent_key": origin.agent_key,
        "kind": AttachmentKind.GENERATED,
        "filename": f"{origin.agent_key}-{str(object_id)[-12:]}.{picture.facts.extension}",
        "mime_type": picture.facts.mime_type,
        "size_bytes": len(picture.data),
        "width": picture.facts.width,
        "height": picture.facts.height,
        "sha256": picture.sha256,
        "storage_key": keys.image_key(origin.tenant_id, object_id, picture.facts.extension),
        "tool_call_id": picture.tool_call_id,
        "revised_prompt": picture.revised_prompt,
        "options": picture.options,
    }


async def mark_stored(database: Database, tenant_id: UUID, object_id: UUID) -> None:
    async with database.tenant(tenant_id) as session:
        await session.execute(
            update(Attachment)
            .where(Attachment.id == object_id, Attachment.status == AttachmentStatus.PENDING)
            .values(status=AttachmentStatus.STORED)
        )


async def repair(database: Database, store: Store, spool: Spool) -> int:
    """Store what waits in this machine's spool; returns how many pictures are stored now."""
    repaired = 0
    for waiting in spool.waiting():
        async with database.tenant(waiting.tenant_id) as session:
            row = await session.scalar(select(Attachment).where(Attachment.id == waiting.object_id))
        if row is None or row.status != AttachmentStatus.PENDING:
            await spool.drop(waiting)
            continue
        try:
            await store.put(row.storage_key, await spool.read(waiting), mime_type=row.mime_type)
        except StorageError:
            return repaired
        await mark_stored(database, waiting.tenant_id, row.id)
        await spool.drop(waiting)
        repaired += 1
        log.info("image.repaired", extra={"tenant_id": str(waiting.tenant_id), "object_id": str(row.id)})
    return repaired


async def get(session: AsyncSession, actor: Actor, object_id: UUID) -> Attachment:
    row = await session.scalar(
        select(Attachment).where(Attachment.id == object_id, Attachment.user_id == actor.user_id)
    )
    if row is None:
        raise NotFound("attachment")
    return row


async def of_messages(session: AsyncSession, message_ids: Sequence[UUID]) -> dict[UUID, list[Attachment]]:
    """The attachments of many messages, by one query, oldest first."""
    rows = await session.scalars(
        select(Attachment).where(Attachment.message_id.in_(message_ids)).order_by(Attachment.id)
    )
    found: dict[UUID, list[Attachment]] = {}
    for row in rows:
        if row.message_id is not None:
            found.setdefault(row.message_id, []).append(row)
    return found


async def remove(session: AsyncSession, store: Store, actor: Actor, object_id: UUID) -> None:
    """Row and object; links made before end with their lifetime."""
    row = await get(session, actor, object_id)
    await session.execute(delete(Attachment).where(Attachment.id == row.id))
    after_commit(session, lambda: store.delete(row.storage_key))


async def remove_objects_of(session: AsyncSession, store: Store, conversation_id: UUID) -> None:
    """Once the transaction stands, delete every object of a conversation."""
    found = await session.scalars(select(Attachment.storage_key).where(Attachment.conversation_id == conversation_id))
    for storage_key in found.all():
        after_commit(session, lambda key=storage_key: store.delete(key))
