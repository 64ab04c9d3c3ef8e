"""Runs: one turn of an agent, from the request to its end."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified, ModelJson
from app.error_codes import ErrorCode
from app.usage.kinds import Basis
from app.usage.money import to_usd


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)


class RunOptions(BaseModel):
    """What the request asks for beyond its text, and which request it was.

    `image` holds the options of the image tool for this run, `tool_choice` the tool that must be used, `edit` and
    `mask` the `object_id` of the image to change and of the image that says where. Workers log the `request_id`.
    """

    model_config = ConfigDict(frozen=True)

    image: dict[str, Any] = Field(default_factory=dict[str, Any])
    tool_choice: str | None = None
    edit: UUID | None = None
    mask: UUID | None = None
    request_id: str | None = None
    traceparent: str | None = None


class RunError(BaseModel):
    """Why a run failed: a stable code, a sentence for the user, whether the same request may succeed later."""

    model_config = ConfigDict(frozen=True)

    code: ErrorCode
    message: str
    retryable: bool


class Run(Identified, Base):
    """The run row is the outbox of its start and the fence of its workers.

    `attempt` counts the claims; every later write of a worker is conditional on it. `calling_turn`, `calling_agent`
    and `background` are committed before a paid request, `response_id` as soon as the provider has named its response
    (with the end, where the call can neither draw nor go on in the background): with both, a later attempt can resume a
    response that the provider finishes in the background. `unrecorded_images` are the tool calls whose images have no
    row although they were paid for: they are fetched again from the provider's stored response. `booked_nano`, in
    nano-dollars, and `booked_basis` sum up the ledger's entries of the calls that are settled so far.

    `reserved_images` and `reserved_nano` are what an open run may still draw and spend, null where its plan limited
    neither pictures and their bytes nor spending as it was admitted. `without` are tools that a limit takes from it.
    """

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(
            ["tenant_id", "conversation_id"], ["conversations.tenant_id", "conversations.id"], ondelete="CASCADE"
        ),
        Index("ix_runs_conversation", "tenant_id", "conversation_id", "id"),
        Index("ix_runs_owner", "tenant_id", "user_id", "id"),
        Index("ix_runs_open", "tenant_id", "status", "id", postgresql_where=text("status IN ('queued', 'running')")),
        Index("ix_runs_unrecorded", "created_at", postgresql_where=text("unrecorded_images <> '{}'")),
    )

    tenant_id: Mapped[UUID]
    conversation_id: Mapped[UUID]
    user_id: Mapped[UUID]
    agent_key: Mapped[str]
    status: Mapped[RunStatus] = mapped_column(EnumText(RunStatus), default=RunStatus.QUEUED)
    attempt: Mapped[int] = mapped_column(default=0)
    options: Mapped[RunOptions] = mapped_column(ModelJson(RunOptions), default=RunOptions)
    input_message_id: Mapped[UUID]
    output_message_id: Mapped[UUID]
    calling_turn: Mapped[int] = mapped_column(default=0)
    calling_agent: Mapped[str | None]
    background: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    response_id: Mapped[str | None]
    last_seq: Mapped[int] = mapped_column(default=0)
    error: Mapped[RunError | None] = mapped_column(ModelJson(RunError))
    usage: Mapped[dict[str, Any] | None]
    booked_nano: Mapped[int | None] = mapped_column(BigInteger)
    booked_basis: Mapped[Basis | None] = mapped_column(EnumText(Basis))
    reserved_images: Mapped[int | None] = mapped_column(BigInteger)
    reserved_nano: Mapped[int | None] = mapped_column(BigInteger)
    without: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list, server_default="{}")
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    unrecorded_images: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list, server_default="{}")

    @property
    def cost_usd(self) -> str | None:
        """Null until the run has ended, and where nothing that it used has a price."""
        if not self.status.ended:
            return None
        return to_usd(0 if self.booked_basis is None else self.booked_nano)

    @property
    def cost_basis(self) -> Basis | None:
        return (self.booked_basis or Basis.REPORTED) if self.status.ended else None
