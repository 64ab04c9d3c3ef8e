"""Pictures into storage, and the rows that know of them."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.attachments.spool import Spool
from app.attachments.variants import stored_keys
from app.db import Database, after_commit, patient, uuid7
from app.errors import NotFound
from app.identity.service import Actor
from app.images.inspect import ImageFacts
from app.storage import keys
from app.storage.store import StorageError, Store

log = logging.getLogger(__name__)

# The text's end waits no longer for a store that does not answer.
PUT_SECONDS = 3.0
# What the provider takes as an input picture.
INPUT_TYPES = ("image/png", "image/jpeg", "image/webp")
# What would end the quotes of a search, or open a tag, which the parser takes for no word.
_SIGNS = str.maketrans(dict.fromkeys("\0\\'<>", " "))


@dataclass(frozen=True)
class Origin:
    """The turn a picture belongs to."""

    tenant_id: UUID
    conversation_id: UUID
    run_id: UUID
    message_id: UUID
    user_id: UUID
    agent_key: str
    prompt: str


@dataclass(frozen=True)
class Picture:
    """A generated picture in memory; `options` are those the provider reports and those we asked."""

    tool_call_id: str
    data: bytes
    facts: ImageFacts
    sha256: str
    revised_prompt: str | None
    options: dict[str, Any]
    parent_object_id: UUID | None


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


@patient
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
        "prompt": origin.prompt,
        "revised_prompt": picture.revised_prompt,
        "options": picture.options,
        "parent_object_id": picture.parent_object_id,
    }


@patient
async def mark_stored(database: Database, tenant_id: UUID, object_id: UUID) -> None:
    async with database.tenant(tenant_id) as session:
        await session.execute(
            update(Attachment)
            .where(Attachment.id == object_id, Attachment.status == AttachmentStatus.PENDING)
            .values(status=AttachmentStatus.STORED)
        )


async def repair(database: Database, store: Store, spool: Spool) -> list[Attachment]:
    """Store what waits in this machine's spool; returns what is stored now."""
    repaired: list[Attachment] = []
    for waiting in spool.waiting():
        async with database.tenant(waiting.tenant_id) as session:
            row = await session.scalar(select(Attachment).where(Attachment.id == waiting.object_id))
        if row is None or row.status != AttachmentStatus.PENDING:
            await spool.drop(waiting)
            continue
        try:
            await store.put(row.storage_key, await spool.read(waiting), mime_type=row.mime_type)
        except FileNotFoundError:
            # Another process of this machine was first.
            continue
        except StorageError:
            return repaired
        await mark_stored(database, waiting.tenant_id, row.id)
        await spool.drop(waiting)
        repaired.append(row)
        log.info("image.repaired", extra={"tenant_id": str(waiting.tenant_id), "object_id": str(row.id)})
    return repaired


async def get(session: AsyncSession, actor: Actor, object_id: UUID) -> Attachment:
    row = await session.scalar(
        select(Attachment).where(Attachment.id == object_id, Attachment.user_id == actor.user_id)
    )
    if row is None:
        raise NotFound("attachment")
    return row


def gallery(actor: Actor, *, kind: AttachmentKind | None, q: str | None, agent_key: str | None) -> Select[Attachment]:
    """The actor's pictures; `q` finds those whose prompts have a word that begins with each of its words.

    Signs and emoji between the words count for nothing; a `q` of nothing else finds nothing, a blank one everything.
    """
    statement = select(Attachment).where(Attachment.user_id == actor.user_id)
    if kind is not None:
        statement = statement.where(Attachment.kind == kind)
    if agent_key is not None:
        statement = statement.where(Attachment.agent_key == agent_key)
    if q and not q.isspace():
        statement = statement.where(Attachment.search.bool_op("@@")(func.to_tsquery("simple", _prefixes(q))))
    return statement


def _prefixes(q: str) -> str:
    """A tsquery in which every piece is quoted: Postgres's own parser finds the words in it, as it did in the texts."""
    return " & ".join(f"'{piece}':*" for piece in q.translate(_SIGNS).split())


def is_input(row: Attachment) -> bool:
    """Whether the picture may be sent to the provider, to be looked at or edited."""
    return row.mime_type in INPUT_TYPES


async def of_ids(session: AsyncSession, user_id: UUID, object_ids: Sequence[UUID]) -> dict[UUID, Attachment]:
    """The person's attachments by id; raises NotFound where one of them is not there or not theirs."""
    rows = await session.scalars(select(Attachment).where(Attachment.id.in_(object_ids), Attachment.user_id == user_id))
    found = {row.id: row for row in rows}
    if not found.keys() >= set(object_ids):
        raise NotFound("attachment")
    return found


async def of_messages(
    session: AsyncSession, message_ids: Sequence[UUID], sent: Mapping[UUID, Sequence[UUID]] = MappingProxyType({})
) -> dict[UUID, list[Attachment]]:
    """The attachments of many messages, by one query: drawn ones oldest first, those `sent` along in their order."""
    sent_ids = [object_id for object_ids in sent.values() for object_id in object_ids]
    rows = await session.scalars(
        select(Attachment)
        .where(or_(Attachment.message_id.in_(message_ids), Attachment.id.in_(sent_ids)))
        .order_by(Attachment.id)
    )
    by_id = {row.id: row for row in rows}
    found: dict[UUID, list[Attachment]] = {}
    for row in by_id.values():
        if row.message_id is not None and row.message_id in message_ids:
            found.setdefault(row.message_id, []).append(row)
    for message_id, object_ids in sent.items():
        # One that was deleted since is no longer shown.
        found.setdefault(message_id, []).extend(by_id[one] for one in object_ids if one in by_id)
    return found


async def remove(session: AsyncSession, store: Store, actor: Actor, object_id: UUID) -> None:
    """Row and objects; links made before end with their lifetime."""
    row = await get(session, actor, object_id)
    await session.execute(delete(Attachment).where(Attachment.id == row.id))
    _drop_objects(session, store, [row])


async def remove_objects_of(session: AsyncSession, store: Store, conversation_id: UUID) -> None:
    """Once the transaction stands, delete every object of a conversation."""
    found = await session.scalars(select(Attachment).where(Attachment.conversation_id == conversation_id))
    _drop_objects(session, store, found.all())


def _drop_objects(session: AsyncSession, store: Store, rows: Sequence[Attachment]) -> None:
    for row in rows:
        for key in (row.storage_key, *stored_keys(row.tenant_id, row.id, row.variants)):
            after_commit(session, partial(store.delete, key))
