"""Opening, finding and renaming conversations; the history that the model gets."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, ColumnElement, DateTime, Row, Select, Uuid, any_, bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments import service as attachments
from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.compiled import CompiledStatement
from app.conversations.models import Conversation, ImagePlaces, Message, MessageRole
from app.db import now, uuid7
from app.errors import NotFound
from app.identity.service import Actor
from app.identity.sharing import READER, require_own, visible_to
from app.paging import PageQuery, Pages
from app.runs.models import Run

TITLE_CHARACTERS = 60
# The history for a model whose provider stores nothing: at most so many messages and characters, the newest.
HISTORY_MESSAGES = 40
HISTORY_CHARACTERS = 60_000


def new(actor: Actor, *, agent_key: str, first_input: str) -> Conversation:
    title = " ".join(first_input.split())[:TITLE_CHARACTERS]
    return Conversation(id=uuid7(), tenant_id=actor.tenant_id, user_id=actor.user_id, agent_key=agent_key, title=title)


async def get(session: AsyncSession, actor: Actor, conversation_id: UUID) -> Conversation:
    """One that the actor may read."""
    conversation = await session.scalar(select(Conversation).where(_readable(actor.user_id, conversation_id)))
    if conversation is None:
        raise NotFound("conversation")
    return conversation


async def fetch_messages(
    session: AsyncSession, actor: Actor, conversation_id: UUID, query: PageQuery
) -> tuple[Sequence[Row[Message, Run]], bool]:
    """A page of those of a conversation that the actor may read, oldest first, each with its run; whether more follow.

    Raises NotFound.
    """
    rows, more = await _MESSAGES.fetch(session, query, {"reader": actor.user_id, "conversation": conversation_id})
    if not rows:
        await get(session, actor, conversation_id)  # it may be one that the actor may not read
    return rows, more


def _readable(reader: UUID | BindParameter[Any], conversation_id: UUID | BindParameter[UUID]) -> ColumnElement[bool]:
    return (Conversation.id == conversation_id) & visible_to(reader, Conversation.user_id, Conversation.id)


def _messages() -> Select[Message, Run]:
    found = select(Conversation.id).where(_readable(READER, bindparam("conversation", type_=Uuid)))
    own = (Run.tenant_id == Message.tenant_id) & (Run.id == Message.run_id)
    return select(Message, Run).outerjoin(Run, own).where(Message.conversation_id == found.scalar_subquery())


_MESSAGES = Pages(_messages(), Message.id, Message, Run, oldest_first=True)


async def get_own(session: AsyncSession, actor: Actor, conversation_id: UUID) -> Conversation:
    """One that the actor may change, held until the transaction ends. Raises NotFound, or Forbidden if it is shared."""
    own = (Conversation.id == conversation_id, Conversation.user_id == actor.user_id)
    conversation = await session.scalar(select(Conversation).where(*own).with_for_update())
    return conversation or await _refuse(session, actor, conversation_id)


async def _refuse(session: AsyncSession, actor: Actor, conversation_id: UUID) -> Conversation:
    """For one that is not the actor's own."""
    conversation = await get(session, actor, conversation_id)
    require_own(actor, conversation.user_id)
    return conversation


async def get_message(session: AsyncSession, conversation: Conversation, message_id: UUID) -> Message:
    message = await session.scalar(
        select(Message).where(Message.id == message_id, Message.conversation_id == conversation.id)
    )
    if message is None:
        raise NotFound("message")
    return message


def new_answer(run: Run, text: str, image_places: ImagePlaces | None = None) -> Message:
    """The agent's message of a run that has ended."""
    return Message(
        id=run.output_message_id,
        tenant_id=run.tenant_id,
        conversation_id=run.conversation_id,
        run_id=run.id,
        role=MessageRole.ASSISTANT,
        text=text,
        image_places=image_places,
        created_at=run.finished_at,
    )


async def touch(session: AsyncSession, actor: Actor, conversation_id: UUID) -> Conversation:
    """The actor's own conversation, updated now; held until the transaction ends."""
    given = {"conversation": conversation_id, "user": actor.user_id, "at": now()}
    return (await _TOUCH.execute(session, given)).scalar() or await _refuse(session, actor, conversation_id)


_TOUCH = CompiledStatement[Conversation](
    update(Conversation)
    .where(Conversation.id == bindparam("conversation", type_=Uuid), Conversation.user_id == bindparam("user"))
    .values(updated_at=bindparam("at", type_=DateTime(timezone=True)))
    .returning(Conversation),
    Conversation,
)


async def newest_messages(session: AsyncSession, conversation_id: UUID, *, upto: UUID) -> list[Message]:
    """The message `upto` and as many before it as a history may have, newest first."""
    given = {"conversation": conversation_id, "upto": upto}
    return list((await _NEWEST_MESSAGES.execute(session, given)).scalars())


_NEWEST_MESSAGES = CompiledStatement[Message](
    select(Message)
    .where(Message.conversation_id == bindparam("conversation", type_=Uuid))
    .where(Message.id <= bindparam("upto", type_=Uuid))
    .order_by(Message.id.desc())
    .limit(HISTORY_MESSAGES + 1),
    Message,
)


def to_history(messages: Sequence[Message], images: Mapping[UUID, Sequence[Attachment]]) -> list[dict[str, Any]]:
    """Input items of the Responses API, oldest first, from messages newest first; images are named, not sent."""
    items: list[dict[str, Any]] = []
    room = HISTORY_CHARACTERS
    for message in messages:
        notes = [_note(row) for row in images.get(message.id, []) if row.status != AttachmentStatus.FAILED]
        text = "\n".join([message.text, *notes]).strip()
        if not text:  # of a run that was stopped before it said anything
            continue
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


def newest_image(
    messages: Sequence[Message], images: Mapping[UUID, Sequence[Attachment]]
) -> tuple[Message, Attachment] | None:
    """The image that "it" means, and its message: the last drawn, or the first of those sent later than that.

    `messages` are newest first.
    """
    for message in messages:
        rows = images.get(message.id, [])
        if usable := [row for row in rows if row.status == AttachmentStatus.STORED and attachments.is_input(row)]:
            return message, usable[0] if message.input_ids else usable[-1]
    return None


async def find_newest_image(
    session: AsyncSession, conversation_id: UUID, *, before: UUID
) -> tuple[Message, Attachment] | None:
    """The same in a conversation's messages before this one, however far back."""
    usable = (Attachment.status == AttachmentStatus.STORED, Attachment.mime_type.in_(attachments.INPUT_TYPES))
    drawn = select(Attachment.message_id).where(Attachment.conversation_id == conversation_id, *usable)
    sent = select(Attachment.id).where(Attachment.id == any_(Message.input_ids), *usable)
    statement = select(Message).where(
        Message.conversation_id == conversation_id,
        Message.id < before,
        or_(Message.id.in_(drawn), sent.exists()),
    )
    message = await session.scalar(statement.order_by(Message.id.desc()).limit(1))
    return message and newest_image([message], await images_of(session, [message]))
