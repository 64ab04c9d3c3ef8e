"""Conversations and messages on the wire."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.attachments.schemas import AttachmentView
from app.errors import not_blank


class ConversationView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    title: str
    agent_key: str
    created_at: datetime
    updated_at: datetime


class ConversationChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(not_blank)]


class MessageView(BaseModel):
    id: UUID
    role: str
    text: str
    attachments: list[AttachmentView]
    run_id: UUID | None
    created_at: datetime
