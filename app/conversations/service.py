"""Opening, finding, renaming and deleting conversations; the history that the model gets."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import any_, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments import service as attachments
from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.conversations.models import Conversation, Message
from app.errors import NotFound
from app.identity.service import Actor
from app.storage.store import Store

TITLE_CHARACTERS = 60
# The history for a model whose provider stores nothing: at most so many messages and characters, the newest.
HISTORY_MESSAGES = 40
HISTORY_CHARACTERS = 60_000


async def open_new(session: AsyncSession, actor: Actor, *, agent_key: str, first_input: str) -> Conversation:
    title = " ".join(first_input.split())[:TITLE_CHARACTERS]
    conversation = Conversation(tenant_id=actor.tenant_id, user_id=actor.user_id, agent_key=agent_key, title=title)
    session.add(conversation)
    await session.flush()
    return conversation


async def get(session: AsyncSession, actor: Actor, conversation_id: UUID, *, lock: bool = False) -> Conversation:
    """The actor's own conversation; with `lock`, held until the transaction ends."""
    statement = select(Conversation).where(Conversation.id == conversation_id, Conversation.user_id == actor.user_id)
    conversation = await session.scalar(statement.with_for_update() if lock else statement)
    if conversation is None:
        raise NotFound("conversation")
    return conversation


async def remove(session: AsyncSession, store: Store, actor: Actor, conversation_id: UUID) -> None:
    """With its messages, runs, attachments and, once committed, their objects."""
    conversation = await get(session, actor, conversation_id, lock=True)
    await attachments.remove_objects_of(session, store, conversation.id)
    await session.execute(delete(Conversation).where(Conversation.id == conversation.id))


async def history(
    session: AsyncSession, conversation_id: UUID, *, before: UUID, after: UUID | None = None
) -> list[dict[str, Any]]:
    """Input items of the Responses API between two messages, oldest first, bounded; images are named, not sent."""
    statement = select(Message).where(Message.conversation_id == conversation_id, Message.id < before)
    if after is not None:
        statement = statement.where(Message.id > after)
    rows = await session.scalars(statement.order_by(Message.id.desc()).limit(HISTORY_MESSAGES))
    messages = rows.all()
    images = await images_of(session, messages)
    items: list[dict[str, Any]] = []
    room = HISTORY_CHARACTERS
    for message in messages:
        notes = [_note(row) for row in images.get(message.id, [])]
        text = "\n".join([message.text, *notes]).strip()
        room -= len(text)
        if room < 0:
            break
        items.append({"role": message.role.value, "content": text})
    return items[::-1]


def _note(row: Attachment) -> str:
    if row.kind == AttachmentKind.UPLOAD:
        return f"[An image was sent here: {row.filename}]"
    return f"[An image was drawn here: {row.revised_prompt or row.filename}]"


async def images_of(session: AsyncSession, messages: Sequence[Message]) -> dict[UUID, list[Attachment]]:
    """The images drawn for each message or sent with it, by one query."""
    sent = {message.id: message.input_ids for message in messages if message.input_ids}
    return await attachments.of_messages(session, [message.id for message in messages], sent)


async def newest_image(
    session: AsyncSession, conversation_id: UUID, *, before: UUID, after: UUID | None = None
) -> Attachment | None:
    """The image that "it" means between two messages: the last drawn, or the first of those sent later than that."""
    usable = (Attachment.status == AttachmentStatus.STORED, Attachment.mime_type.in_(attachments.INPUT_TYPES))
    drawn = select(Attachment.message_id).where(Attachment.conversation_id == conversation_id, *usable)
    sent = select(Attachment.id).where(Attachment.id == any_(Message.input_ids), *usable)
    statement = select(Message).where(
        Message.conversation_id == conversation_id,
        Message.id < before,
        or_(Message.id.in_(drawn), sent.exists()),
    )
    if after is not None:
        statement = statement.where(Message.id > after)
    message = await session.scalar(statement.order_by(Message.id.desc()).limit(1))
    if message is None:
        return None
    images = (await images_of(session, [message])).get(message.id, [])
    found = [row for row in images if row.status == AttachmentStatus.STORED and attachments.is_input(row)]
    return found[0] if message.input_ids else found[-1]
