"""Conversations and messages as their readers see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.attachments.models import Attachment
from app.attachments.schemas import AttachmentView
from app.bodies import Body, not_blank
from app.conversations.models import Message, MessageRole
from app.paging import Page

# More than a user may send with a message.
ATTACHMENTS_SHOWN = 20


class ConversationView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    title: str
    agent_key: str
    created_at: datetime
    updated_at: datetime


class ConversationPage(Page[ConversationView]):
    pass


class ConversationChange(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"title": "Lighthouses"}]})

    title: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(not_blank)]


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
