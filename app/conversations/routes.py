"""A user's conversations and their messages."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator
from sqlalchemy import select

from app.attachments.links import ReaderLinks
from app.attachments.models import Attachment
from app.attachments.schemas import AttachmentPage, views
from app.bodies import storable
from app.conversations import service
from app.conversations.models import Conversation, Message
from app.conversations.schemas import ConversationChange, ConversationPage, ConversationView, MessagePage, MessageView
from app.errors import id_of
from app.identity.actor import TenantSession, may
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.paging import PageQuery, fetch_page

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

ConversationId = Annotated[UUID, id_of("conversation")]
MessageId = Annotated[UUID, id_of("message")]
Title = Annotated[str, AfterValidator(storable)]


@router.get("")
async def list_conversations(
    actor: Annotated[Actor, may(Permission.READ_CHAT)],
    session: TenantSession,
    query: Annotated[PageQuery, Depends()],
    q: Annotated[Title | None, Query(max_length=200, description="Finds the titles that contain it.")] = None,
) -> ConversationPage:
    """List the user's conversations.

    Newest first.
    """
    statement = select(Conversation).where(Conversation.user_id == actor.user_id)
    if q:
        statement = statement.where(Conversation.title.icontains(q, autoescape=True))
    rows, cursor = await fetch_page(session, statement, Conversation.id, query)
    return ConversationPage(data=[ConversationView.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/{conversation_id}")
async def get_conversation(
    conversation_id: ConversationId, actor: Annotated[Actor, may(Permission.READ_CHAT)], session: TenantSession
) -> ConversationView:
    """Get a conversation.

    Its messages are at `/messages`.
    """
    return ConversationView.model_validate(await service.get(session, actor, conversation_id))


@router.patch("/{conversation_id}")
async def rename_conversation(
    conversation_id: ConversationId,
    body: ConversationChange,
    actor: Annotated[Actor, may(Permission.WRITE_CHAT)],
    session: TenantSession,
) -> ConversationView:
    """Rename a conversation.

    Until then its title is the beginning of its first message.
    """
    conversation = await service.get(session, actor, conversation_id, lock=True)
    conversation.title = body.title
    await session.flush()
    return ConversationView.model_validate(conversation)


@router.get("/{conversation_id}/messages")
async def list_messages(
    conversation_id: ConversationId,
    actor: Annotated[Actor, may(Permission.READ_CHAT)],
    session: TenantSession,
    links: ReaderLinks,
    query: Annotated[PageQuery, Depends()],
) -> MessagePage:
    """List a conversation's messages.

    Oldest first, each with its attachments and their fresh links.
    """
    conversation = await service.get(session, actor, conversation_id)
    statement = select(Message).where(Message.conversation_id == conversation.id)
    rows, cursor = await fetch_page(session, statement, Message.id, query, oldest_first=True)
    images = await service.images_of(session, rows)
    data = [await MessageView.of(row, images.get(row.id, [])).with_links(links) for row in rows]
    return MessagePage(data=data, next_cursor=cursor)


@router.get("/{conversation_id}/messages/{message_id}/attachments")
async def list_message_attachments(
    conversation_id: ConversationId,
    message_id: MessageId,
    actor: Annotated[Actor, may(Permission.READ_CHAT)],
    session: TenantSession,
    links: ReaderLinks,
    query: Annotated[PageQuery, Depends()],
) -> AttachmentPage:
    """List a message's attachments.

    Those that were drawn for it, in its order: a message itself shows the first 20, and `attachments_next_cursor`, the
    `cursor` of the next.
    """
    conversation = await service.get(session, actor, conversation_id)
    await service.get_message(session, conversation, message_id)
    statement = select(Attachment).where(Attachment.message_id == message_id)
    rows, cursor = await fetch_page(session, statement, Attachment.id, query, oldest_first=True)
    return AttachmentPage(data=await views(rows, links), next_cursor=cursor)
