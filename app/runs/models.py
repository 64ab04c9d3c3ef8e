"""Runs: one turn of an agent, from the request to its end."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


class Run(Identified, Base):
    """The run row is the outbox of its task and the fence of its workers.

    `options` holds what the request asked beyond its text: `image`, `tool_choice`, `edit`, `mask`. `attempt` counts
    the claims; every later write of a worker is conditional on it. `calling_turn`, `calling_agent` and `background`
    are committed before a paid request, `response_id` as soon as the provider has named its answer: with both, a
    later attempt can go on with an answer that the provider finishes in the background.
    """

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(
            ["tenant_id", "conversation_id"], ["conversations.tenant_id", "conversations.id"], ondelete="CASCADE"
        ),
        Index("ix_runs_conversation", "tenant_id", "conversation_id", "id"),
        Index("ix_runs_open", "status", postgresql_where=text("status IN ('queued', 'running')")),
    )

    tenant_id: Mapped[UUID]
    conversation_id: Mapped[UUID]
    user_id: Mapped[UUID]
    agent_key: Mapped[str]
    status: Mapped[RunStatus] = mapped_column(EnumText(RunStatus), default=RunStatus.QUEUED)
    attempt: Mapped[int] = mapped_column(default=0)
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    input_message_id: Mapped[UUID]
    output_message_id: Mapped[UUID | None]
    calling_turn: Mapped[int] = mapped_column(default=0)
    calling_agent: Mapped[str | None]
    background: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    response_id: Mapped[str | None]
    last_seq: Mapped[int] = mapped_column(default=0)
    error: Mapped[dict[str, Any] | None]
    usage: Mapped[dict[str, Any] | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
