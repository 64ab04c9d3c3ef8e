"""Conversations and messages as their readers see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.attachments.models import Attachment
from app.attachments.schemas import AttachmentView
from app.bodies import Body, Name, example
from app.conversations.models import Message, MessageRole, Visibility
from app.paging import Page

# More than a user may send with a message.
ATTACHMENTS_SHOWN = 20


class ConversationView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    user_id: UUID
    title: str
    agent_key: str
    visibility: Visibility
    created_at: datetime
    updated_at: datetime


class ConversationPage(Page[ConversationView]):
    pass


class ConversationChange(Body):
    """What is left out stays as it is. `visibility`: `tenant` lets every member read it, viewers too."""

    model_config = example({"title": "Lighthouses"})

    title: Name | None = None
    visibility: Visibility | None = None


class MessageView(BaseModel):
    """`attachments` are the first 20.

    Where there are more, `attachments_next_cursor` is the `cursor` of those that follow, at `/attachments` below it.
    """

    id: UUID
    role: MessageRole
    text: str
    attachments: list[AttachmentView]
    attachments_next_cursor: UUID | None
    run_id: UUID | None
    created_at: datetime

    @classmethod
    def of(cls, row: Message, attachments: Sequence[Attachment]) -> Self:
        """Without links yet, as `AttachmentView.of`."""
        shown = attachments[:ATTACHMENTS_SHOWN]
        return cls(
            id=row.id,
            role=row.role,
            text=row.text,
            attachments=[AttachmentView.of(attachment) for attachment in shown],
            attachments_next_cursor=shown[-1].id if len(shown) < len(attachments) else None,
            run_id=row.run_id,
            created_at=row.created_at,
        )


class MessagePage(Page[MessageView]):
    pass
