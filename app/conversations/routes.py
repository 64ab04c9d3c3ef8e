"""A user's conversations and their messages."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import AfterValidator
from sqlalchemy import select

from app.attachments import service as attachments
from app.attachments.links import ReaderLinks
from app.attachments.models import Attachment
from app.attachments.schemas import AttachmentPage, give_links, linked
from app.bodies import storable
from app.conversations import listing, service, sharing
from app.conversations.listing import Position, is_position
from app.conversations.parts import sent_with
from app.conversations.schemas import ConversationChange, ConversationPage, ConversationView, MessagePage, MessageView
from app.errors import id_of
from app.identity.actor import TenantSession, may
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.openapi import Router
from app.paging import Paging, fetch_page

router = Router(prefix="/v1/conversations", tags=["conversations"])

ConversationId = Annotated[UUID, id_of("conversation")]
MessageId = Annotated[UUID, id_of("message")]
Title = Annotated[str, AfterValidator(storable)]
Cursor = Annotated[str, AfterValidator(is_position)]


@router.get("")
async def list_conversations(
    actor: Annotated[Actor, may(Permission.READ_CHAT)],
    session: TenantSession,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Cursor | None = None,
    q: Annotated[Title | None, Query(max_length=200, description="Finds the titles that contain it.")] = None,
    shared: Annotated[bool, Query(description="Those that others share, instead.")] = False,
) -> ConversationPage:
    """List the user's conversations.

    The last active first. One in which a run is started while the list is paged moves to its beginning; the pages that
    follow keep their order.
    """
    statement = listing.listed(actor, shared=shared, q=q)
    rows, last = await listing.fetch_page(
        session, statement, limit=limit, after=Position.parse(cursor) if cursor else None
    )
    data = [ConversationView.of(row.Conversation, row.active) for row in rows]
    return ConversationPage(data=data, next_cursor=str(last) if last else None)


@router.get("/{conversation_id}")
async def get_conversation(
    conversation_id: ConversationId, actor: Annotated[Actor, may(Permission.READ_CHAT)], session: TenantSession
) -> ConversationView:
    """Get a conversation.

    Its messages are at `/messages`; the message of its active run is there once that has ended.
    """
    return ConversationView.of(*await listing.get_with_run(session, actor, conversation_id))


@router.patch("/{conversation_id}")
async def update_conversation(
    conversation_id: ConversationId,
    body: ConversationChange,
    actor: Annotated[Actor, may(Permission.WRITE_CHAT)],
    session: TenantSession,
) -> ConversationView:
    """Rename a conversation, share it, or take it back.

    Its first title is the beginning of its first message. Every member of the tenant may read one that is shared, with
    its runs and images; taken back, it is gone for them with the next request.
    """
    await sharing.change(session, actor, conversation_id, body)
    return ConversationView.of(*await listing.get_with_run(session, actor, conversation_id))


@router.get("/{conversation_id}/messages")
async def list_messages(
    conversation_id: ConversationId,
    actor: Annotated[Actor, may(Permission.READ_CHAT)],
    session: TenantSession,
    links: ReaderLinks,
    query: Paging,
) -> MessagePage:
    """List a conversation's messages.

    Oldest first, each with its attachments and their fresh links.
    """
    rows, more = await service.fetch_messages(session, actor, conversation_id, query)
    sent = {message.id: sent_with(message, run) for message, run in rows}
    images = await attachments.of_messages(session, list(sent), sent)
    data = [MessageView.of(message, images.get(message.id, []), run) for message, run in rows]
    await give_links([attachment for message in data for attachment in message.attachments], links)
    return MessagePage(data=data, next_cursor=data[-1].id if more else None)


@router.get("/{conversation_id}/messages/{message_id}/attachments")
async def list_message_attachments(
    conversation_id: ConversationId,
    message_id: MessageId,
    actor: Annotated[Actor, may(Permission.READ_CHAT)],
    session: TenantSession,
    links: ReaderLinks,
    query: Paging,
) -> AttachmentPage:
    """List a message's attachments.

    Those that were drawn for it, in its order: a message itself shows the first 20, and `attachments_next_cursor`, the
    `cursor` of the next.
    """
    conversation = await service.get(session, actor, conversation_id)
    await service.get_message(session, conversation, message_id)
    statement = select(Attachment).where(Attachment.message_id == message_id)
    rows, cursor = await fetch_page(session, statement, Attachment.id, query, oldest_first=True)
    return AttachmentPage(data=await linked(rows, links), next_cursor=cursor)
