"""Attachments: what is known of a stored image; its bytes lie in object storage."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from sqlalchemy import (
    BigInteger,
    Computed,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified, ModelJson
from app.error_codes import ErrorCode
from app.usage.kinds import Basis
from app.usage.money import to_usd

ALT_CHARACTERS = 250


class AttachmentStatus(StrEnum):
    PENDING = "pending"
    STORED = "stored"
    FAILED = "failed"


class AttachmentKind(StrEnum):
    GENERATED = "generated"
    UPLOAD = "upload"


class AttachmentPurpose(StrEnum):
    """What an image is for: to be seen, or to say where another one is to be changed."""

    IMAGE = "image"
    MASK = "mask"


class AttachmentError(BaseModel):
    """Why an image is not there: a stable code, a sentence for the user, whether it may come later."""

    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)

    code: ErrorCode
    detail: str
    retryable: bool = False


class Attachment(Identified, Base):
    """`id` is the public `object_id`; `sha256` is in hex; a failed one has an `error`.

    Of one that failed `storage_key` names nothing; where its bytes never came, `sha256` and `size_bytes` are null.

    `prompt` is what the user wrote in the image's run, empty for uploads. `variants` lists the smaller copies as
    `{width, height, size_bytes, storage_key}`, smallest first; it is null until the worker has tried to make them.
    `cost_nano`, in nano-dollars, is the image's share of what its call used of the image model; null until that is
    settled. `stored_bytes`, which a trigger sets, counts it with its smaller copies, unless it failed.
    """

    __tablename__ = "attachments"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        UniqueConstraint("tenant_id", "run_id", "tool_call_id", "sha256"),
        ForeignKeyConstraint(
            ["tenant_id", "conversation_id"], ["conversations.tenant_id", "conversations.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.id"], ondelete="CASCADE"),
        Index("ix_attachments_conversation", "tenant_id", "conversation_id"),
        Index("ix_attachments_message", "tenant_id", "message_id"),
        Index("ix_attachments_owner", "tenant_id", "user_id", "id"),
        Index("ix_attachments_stored_bytes", "tenant_id", postgresql_include=["stored_bytes"]),
        Index(
            "ix_attachments_unfinished",
            "created_at",
            postgresql_where=text("status = 'pending' OR (status = 'stored' AND variants IS NULL)"),
        ),
    )

    tenant_id: Mapped[UUID]
    conversation_id: Mapped[UUID | None]
    run_id: Mapped[UUID | None]
    message_id: Mapped[UUID | None]
    user_id: Mapped[UUID]
    agent_key: Mapped[str | None]
    kind: Mapped[AttachmentKind] = mapped_column(EnumText(AttachmentKind))
    purpose: Mapped[AttachmentPurpose] = mapped_column(
        EnumText(AttachmentPurpose), default=AttachmentPurpose.IMAGE, server_default=AttachmentPurpose.IMAGE
    )
    status: Mapped[AttachmentStatus] = mapped_column(EnumText(AttachmentStatus), default=AttachmentStatus.PENDING)
    filename: Mapped[str]
    mime_type: Mapped[str]
    size_bytes: Mapped[int | None]
    width: Mapped[int | None]
    height: Mapped[int | None]
    sha256: Mapped[str | None]
    storage_key: Mapped[str]
    tool_call_id: Mapped[str | None]
    prompt: Mapped[str] = mapped_column(default="", server_default="")
    revised_prompt: Mapped[str | None]
    search: Mapped[str | None] = mapped_column(
        TSVECTOR,
        Computed("to_tsvector('simple', prompt || ' ' || coalesce(revised_prompt, ''))", persisted=True),
        deferred=True,
    )
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    parent_object_id: Mapped[UUID | None]
    variants: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB(none_as_null=True))
    blurhash: Mapped[str | None]
    error: Mapped[AttachmentError | None] = mapped_column(ModelJson(AttachmentError))
    cost_nano: Mapped[int | None] = mapped_column(BigInteger)
    cost_basis: Mapped[Basis | None] = mapped_column(EnumText(Basis))
    stored_bytes: Mapped[int | None] = mapped_column(
        BigInteger, FetchedValue(), server_onupdate=FetchedValue(), deferred=True
    )

    @property
    def cost_usd(self) -> str | None:
        return to_usd(self.cost_nano)

    @property
    def alt(self) -> str:
        """What the picture shows, in one line: the prompt it was drawn by; of an upload, the name of its file."""
        lines = (" ".join((one or "").split()) for one in (self.revised_prompt, self.prompt, self.filename))
        return next(filter(None, lines), "")[:ALT_CHARACTERS].rstrip()


class AttachmentWord(Base):
    """A word of an image's prompts, written by a trigger.

    `@@` is not leakproof, so Postgres uses no GIN index for it under row security; the comparison of texts is, so a
    range of this table's words is read by its primary key.
    """

    __tablename__ = "attachment_words"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "attachment_id"], ["attachments.tenant_id", "attachments.id"], ondelete="CASCADE"
        ),
        Index("ix_attachment_words_attachment", "tenant_id", "attachment_id"),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    word: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    attachment_id: Mapped[UUID] = mapped_column(primary_key=True)


class OrphanCandidate(Base):
    """An object without a row: found first at `marked_at`, and last at `seen_at`."""

    __tablename__ = "orphan_candidates"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    marked_at: Mapped[datetime]
    seen_at: Mapped[datetime]
