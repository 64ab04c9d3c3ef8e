"""Renaming a conversation, and sharing it with the tenant."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.conversations.models import Conversation, Visibility
from app.conversations.schemas import ConversationChange
from app.conversations.service import get_own
from app.identity import audit
from app.identity.audit import Action, Author, TargetType
from app.identity.service import Actor


async def change(
    session: AsyncSession, actor: Actor, conversation_id: UUID, wanted: ConversationChange
) -> Conversation:
    """Rename it, share it, or take it back."""
    conversation = await get_own(session, actor, conversation_id)
    if wanted.title is not None:
        conversation.title = wanted.title
    if wanted.visibility is not None and wanted.visibility != conversation.visibility:
        before, conversation.visibility = conversation.visibility, wanted.visibility
        shared = wanted.visibility == Visibility.TENANT
        audit.record(
            session,
            actor.tenant_id,
            Author.of(actor),
            Action.CONVERSATION_SHARED if shared else Action.CONVERSATION_UNSHARED,
            TargetType.CONVERSATION,
            conversation_id,
            {"visibility": [before, wanted.visibility]},
        )
    await session.flush()
    return conversation
