"""Finding and deleting the rows of images."""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    CollectionAggregate,
    ColumnElement,
    Select,
    Text,
    Uuid,
    any_,
    bindparam,
    column,
    delete,
    func,
    literal,
    or_,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments.models import (
    Attachment,
    AttachmentKind,
    AttachmentPurpose,
    AttachmentStatus,
    AttachmentWord,
)
from app.attachments.variants import stored_keys
from app.compiled import CompiledStatement
from app.db import after_commit
from app.errors import NotFound
from app.identity.service import Actor
from app.identity.sharing import require_own, sent_with_shared, visible_to
from app.paging import PageQuery, Pages
from app.storage import keys
from app.storage.store import Store

# Runs lie above this feature.
_runs = table("runs", column("id", Uuid), column("unrecorded_images", ARRAY(Text)))

# Messages as well. An image without a place comes after the text: once it is deleted, nothing else would show that it
# was there. The others get their places with it, so that all keep their order.
_KEEP_PLACE = text("""
UPDATE messages SET image_places = coalesce(image_places, '[]') || (
  SELECT jsonb_agg(jsonb_build_array(length(messages.text), image.id) ORDER BY image.id)
  FROM (SELECT id FROM attachments WHERE message_id = messages.id UNION SELECT :object_id) image
  WHERE NOT coalesce(image_places, '[]') @> jsonb_build_array(jsonb_build_array(image.id)))
WHERE id = :message_id AND NOT coalesce(image_places, '[]') @> jsonb_build_array(jsonb_build_array(:object_id))
""").bindparams(bindparam("object_id", type_=Uuid), bindparam("message_id", type_=Uuid))

# The types that the provider accepts as an input image.
INPUT_TYPES = ("image/png", "image/jpeg", "image/webp")
# With so many images to look at, those of a page are soon found among the newest.
MANY = 500
LAST_CHARACTER = "\U0010ffff"
# Characters that would end the quotes of a search, or open a tag, which the parser does not accept as a word.
_SIGNS = str.maketrans(dict.fromkeys("\0\\'<>", " "))


async def get(session: AsyncSession, actor: Actor, object_id: UUID) -> Attachment:
    """One that the actor may see."""
    row = await session.scalar(select(Attachment).where(Attachment.id == object_id, _visible_to(actor)))
    if row is None:
        raise NotFound("attachment")
    return row


def _visible_to(actor: Actor) -> ColumnElement[bool]:
    return or_(
        visible_to(actor.user_id, Attachment.user_id, Attachment.conversation_id),
        (Attachment.kind == AttachmentKind.UPLOAD) & sent_with_shared(Attachment.id),
    )


async def fetch_gallery(
    session: AsyncSession,
    actor: Actor,
    query: PageQuery,
    *,
    purpose: AttachmentPurpose,
    kind: AttachmentKind | None,
    q: str | None,
    agent_key: str | None,
) -> tuple[list[Attachment], UUID | None]:
    """A page of the actor's images, without those that could not be drawn or stored, and the cursor of the next.

    `q` finds those whose prompts have a word that begins with each of its words. Signs and emoji between the words are
    ignored; a `q` of nothing else finds nothing, a blank one everything.
    """
    values: dict[str, Any] = {"user": actor.user_id, "purpose": purpose, "kind": kind, "agent": agent_key}
    among: Sequence[UUID] = ()
    if is_searched := bool(q and not q.isspace()):
        among = await _with_longest_word(session, actor, q or "")
        values |= {"words": _prefixes(q or ""), "among": among}
    shape = (kind is not None, agent_key is not None, is_searched, is_searched and len(among) < MANY)
    found, more = await _gallery(*shape).fetch(session, query, values)
    rows = [row[0] for row in found]
    return rows, rows[-1].id if more else None


@cache
def _gallery(of_kind: bool, of_agent: bool, is_searched: bool, is_among: bool) -> Pages[Attachment]:
    # A failed upload is in no message: its file was lost since.
    is_there = or_(Attachment.status != AttachmentStatus.FAILED, Attachment.kind == AttachmentKind.UPLOAD)
    statement = select(Attachment).where(Attachment.user_id == bindparam("user"), is_there)
    statement = statement.where(Attachment.purpose == bindparam("purpose"))
    if of_kind:
        statement = statement.where(Attachment.kind == bindparam("kind"))
    if of_agent:
        statement = statement.where(Attachment.agent_key == bindparam("agent"))
    if is_searched:
        # The function behind `@@`: under row security the operator counts as rare, and all images would be sorted.
        words = func.to_tsquery("simple", bindparam("words", type_=Text))
        statement = statement.where(func.ts_match_vq(Attachment.search, words))
    if is_among:
        statement = statement.where(Attachment.id == any_(bindparam("among", type_=ARRAY(Uuid))))
    return Pages(statement, Attachment.id, Attachment)


async def _with_longest_word(session: AsyncSession, actor: Actor, q: str) -> Sequence[UUID]:
    """Which of the actor's images have a word that begins with the longest of `q`: at most MANY, in no order."""
    given = {"q": q.translate(_SIGNS), "user_id": actor.user_id}
    return (await _WITH_LONGEST_WORD.execute(session, given)).scalars().all()


def _with_longest_word_of(q: BindParameter[str], user_id: BindParameter[UUID]) -> Select[UUID]:
    parsed = func.unnest(func.to_tsvector("simple", q)).table_valued("lexeme")
    # A subquery, not a join: the operator that makes the upper bound is not leakproof either.
    longest = select(parsed.c.lexeme).order_by(func.length(parsed.c.lexeme).desc()).limit(1).scalar_subquery()
    word = AttachmentWord.word
    return (
        select(AttachmentWord.attachment_id)
        .where(AttachmentWord.user_id == user_id, word >= longest, word <= longest.concat(LAST_CHARACTER))
        .limit(MANY)
    )


_WITH_LONGEST_WORD = CompiledStatement(
    _with_longest_word_of(bindparam("q", type_=Text), bindparam("user_id", type_=Uuid))
)


def _prefixes(q: str) -> str:
    """A tsquery in which every piece is quoted: Postgres's own parser splits it into words, as it did the texts."""
    return " & ".join(f"'{piece}':*" for piece in q.translate(_SIGNS).split())


def is_input(row: Attachment) -> bool:
    """Whether the image may be sent to the provider, to be looked at or edited."""
    return row.mime_type in INPUT_TYPES


def _any_of(ids: Sequence[UUID]) -> CollectionAggregate[Any]:
    # Not IN, whose SQL has a parameter for each id: the statement would be prepared anew for each count of ids.
    return any_(literal(list(ids), ARRAY(Uuid)))


async def own_of_ids(session: AsyncSession, actor: Actor, object_ids: Sequence[UUID]) -> dict[UUID, Attachment]:
    """The actor's attachments by id; raises NotFound where one is not there, Forbidden where it is only shared."""
    rows = await session.scalars(select(Attachment).where(Attachment.id == _any_of(object_ids), _visible_to(actor)))
    found = {row.id: row for row in rows}
    if not found.keys() >= set(object_ids):
        raise NotFound("attachment")
    for row in found.values():
        require_own(actor, row.user_id)
    return found


async def with_copies(session: AsyncSession, object_ids: Sequence[UUID]) -> Sequence[Attachment]:
    """Those of these images whose smaller copies were made by now."""
    made = Attachment.variants.is_not(None)
    return (await session.scalars(select(Attachment).where(Attachment.id == _any_of(object_ids), made))).all()


async def of_messages(
    session: AsyncSession, message_ids: Sequence[UUID], sent: Mapping[UUID, Sequence[UUID]] = MappingProxyType({})
) -> dict[UUID, list[Attachment]]:
    """The attachments of many messages, by one query: drawn ones oldest first, those `sent` along in their order."""
    sent_ids = [object_id for object_ids in sent.values() for object_id in object_ids]
    rows = await _OF_MESSAGES.execute(session, {"messages": list(message_ids), "sent": sent_ids})
    by_id = {row.id: row for row in rows.scalars()}
    drawn_for = set(message_ids)
    found: dict[UUID, list[Attachment]] = {}
    for row in by_id.values():
        if row.message_id is not None and row.message_id in drawn_for:
            found.setdefault(row.message_id, []).append(row)
    for message_id, object_ids in sent.items():
        # An image that was deleted since is no longer shown.
        found.setdefault(message_id, []).extend(by_id[one] for one in object_ids if one in by_id)
    return found


def _of_messages() -> Select[Attachment]:
    messages, sent = (any_(bindparam(name, type_=ARRAY(Uuid))) for name in ("messages", "sent"))
    found = select(Attachment).where(or_(Attachment.message_id == messages, Attachment.id == sent))
    return found.order_by(Attachment.id)


_OF_MESSAGES = CompiledStatement(_of_messages(), Attachment)


async def remove(session: AsyncSession, store: Store, actor: Actor, object_id: UUID) -> None:
    """Row and objects; links made before end with their lifetime."""
    row = await get(session, actor, object_id)
    require_own(actor, row.user_id)
    await session.execute(delete(Attachment).where(Attachment.id == row.id))
    if row.message_id is not None:
        # After the row is locked: whoever deletes a conversation locks its images before its messages.
        await session.execute(_KEEP_PLACE, {"object_id": row.id, "message_id": row.message_id})
    if row.sha256 is None:
        # It is not to be fetched again from the provider.
        without = func.array_remove(_runs.c.unrecorded_images, row.tool_call_id)
        await session.execute(update(_runs).where(_runs.c.id == row.run_id).values(unrecorded_images=without))
    _drop_objects(session, store, [row])
    if row.run_id is not None:
        after_commit(session, partial(drop_previews, store, row.tenant_id, row.run_id, row.tool_call_id))


def _drop_objects(session: AsyncSession, store: Store, rows: Sequence[Attachment]) -> None:
    for row in rows:
        for key in (row.storage_key, *stored_keys(row.tenant_id, row.id, row.variants)):
            after_commit(session, partial(store.delete, key))


async def drop_previews(store: Store, tenant_id: UUID, run_id: UUID, tool_call_id: str | None = None) -> None:
    """Those of one tool call, or of the whole run. Raises StorageError."""
    async for preview in store.list(keys.preview_prefix(tenant_id, run_id, tool_call_id)):
        await store.delete(preview.key)
