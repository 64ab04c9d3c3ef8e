"""A user's conversations and their messages."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator
from sqlalchemy import select

from app.attachments.links import CurrentStore, ReaderLinks
from app.conversations import service
from app.conversations.models import Conversation, Message
from app.conversations.schemas import ConversationChange, ConversationView, MessageView
from app.errors import id_of, storable
from app.identity.actor import ChatReader, ChatWriter, TenantSession
from app.paging import Page, PageQuery, fetch_page

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

ConversationId = Annotated[UUID, id_of("conversation")]


@router.get("")
async def list_conversations(
    actor: ChatReader,
    session: TenantSession,
    query: Annotated[PageQuery, Depends()],
    q: Annotated[Annotated[str, AfterValidator(storable)] | None, Query(max_length=200)] = None,
) -> Page[ConversationView]:
    """Newest first; `q` finds titles that contain it."""
    statement = select(Conversation).where(Conversation.user_id == actor.user_id)
    if q:
        statement = statement.where(Conversation.title.icontains(q, autoescape=True))
    rows, cursor = await fetch_page(session, statement, Conversation.id, query)
    return Page(data=[ConversationView.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/{conversation_id}")
async def get_conversation(
    conversation_id: ConversationId, actor: ChatReader, session: TenantSession
) -> ConversationView:
    return ConversationView.model_validate(await service.get(session, actor, conversation_id))


@router.patch("/{conversation_id}")
async def rename_conversation(
    conversation_id: ConversationId, body: ConversationChange, actor: ChatWriter, session: TenantSession
) -> ConversationView:
    conversation = await service.get(session, actor, conversation_id, lock=True)
    conversation.title = body.title
    await session.flush()
    return ConversationView.model_validate(conversation)


@router.delete("/{conversation_id}", status_code=204)
async def delete_conversation(
    conversation_id: ConversationId, actor: ChatWriter, session: TenantSession, store: CurrentStore
) -> None:
    await service.remove(session, store, actor, conversation_id)


@router.get("/{conversation_id}/messages")
async def list_messages(
    conversation_id: ConversationId,
    actor: ChatReader,
    session: TenantSession,
    links: ReaderLinks,
    query: Annotated[PageQuery, Depends()],
) -> Page[MessageView]:
    """Oldest first, each with its attachments and their fresh links."""
    conversation = await service.get(session, actor, conversation_id)
    statement = select(Message).where(Message.conversation_id == conversation.id)
    rows, cursor = await fetch_page(session, statement, Message.id, query, oldest_first=True)
    images = await service.images_of(session, rows)
    data = [await MessageView.of(row, images.get(row.id, [])).with_links(links) for row in rows]
    return Page(data=data, next_cursor=cursor)
