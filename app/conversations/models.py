"""Conversations and their messages."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import RootModel
from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified, ModelJson, now
from app.identity.sharing import SHARED


class MessageRole(StrEnum):
    USER = "user"
    ASSISTANT = "assistant"


class MessageStatus(StrEnum):
    """An agent's message ends as its run does."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Visibility(StrEnum):
    """Who may read a conversation besides its user: nobody, or every member of the tenant."""

    PRIVATE = "private"
    TENANT = SHARED


class ImagePlaces(RootModel[list[tuple[int, UUID]]]):
    """Where the images of a message come: after how many characters of its text, and their `object_id`s."""


class Conversation(Identified, Base):
    """One user's chat with an agent; `title` is the first 60 characters of the first input.

    `updated_at` is that of the last activity: a run was started, or the conversation renamed or shared.
    """

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        Index("ix_conversations_owner", "tenant_id", "user_id", "updated_at", "id"),
        Index(
            "ix_conversations_shared",
            "tenant_id",
            "updated_at",
            "id",
            postgresql_where=text("visibility = 'tenant'"),
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    agent_key: Mapped[str]
    title: Mapped[str]
    visibility: Mapped[Visibility] = mapped_column(
        EnumText(Visibility), default=Visibility.PRIVATE, server_default=Visibility.PRIVATE
    )
    updated_at: Mapped[datetime] = mapped_column(default=now, onupdate=now)


class Message(Identified, Base):
    """What a user or an agent said; the images an agent drew are rows of `attachments` that name the message.

    `input_ids` are the images that the user sent with it, in their order. `image_places` are those of an agent's
    images, null where they all come after the text.
    """

    __tablename__ = "messages"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(
            ["tenant_id", "conversation_id"], ["conversations.tenant_id", "conversations.id"], ondelete="CASCADE"
        ),
        Index("ix_messages_conversation", "tenant_id", "conversation_id", "id"),
    )

    tenant_id: Mapped[UUID]
    conversation_id: Mapped[UUID]
    run_id: Mapped[UUID | None]
    role: Mapped[MessageRole] = mapped_column(EnumText(MessageRole))
    text: Mapped[str]
    input_ids: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), default=list, server_default="{}")
    image_places: Mapped[ImagePlaces | None] = mapped_column(ModelJson(ImagePlaces))
