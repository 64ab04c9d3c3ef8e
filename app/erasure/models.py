"""Erasures: what was requested, how far it is, and what deleted rows leave to do in the store."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified


class ErasureKind(StrEnum):
    """A whole tenant; what one member made in a tenant; the account of a user."""

    TENANT = "tenant"
    MEMBER = "member"
    ACCOUNT = "account"


class ErasureStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"


class Erasure(Identified, Base):
    """A part of what a receipt stands for: a user's has one for each tenant and one for the account.

    Kept for good, by ids alone. `lease_until` is when a worker may look at it next, by Postgres' clock; `rows_gone_at`
    is set once only objects and the provider's copies are left.
    """

    __tablename__ = "erasures"
    __table_args__ = (
        Index("ix_erasures_open", "lease_until", postgresql_where=text("completed_at IS NULL")),
        Index("ix_erasures_tenant", "tenant_id", unique=True, postgresql_where=text("kind = 'tenant'")),
    )

    receipt_hash: Mapped[bytes] = mapped_column(LargeBinary, index=True)
    kind: Mapped[ErasureKind] = mapped_column(EnumText(ErasureKind))
    # No foreign keys: it outlives both.
    tenant_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    status: Mapped[ErasureStatus] = mapped_column(EnumText(ErasureStatus), default=ErasureStatus.QUEUED)
    lease_until: Mapped[datetime] = mapped_column(server_default=text("now()"))
    rows_gone_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    rows: Mapped[int] = mapped_column(BigInteger, server_default="0")
    objects: Mapped[int] = mapped_column(BigInteger, server_default="0")
    size_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    provider: Mapped[int] = mapped_column(BigInteger, server_default="0")


class ObjectRemoval(Base):
    """All objects under `prefix` are to go from the store once `due_at` has come; a worker that begins puts it off."""

    __tablename__ = "object_removals"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    prefix: Mapped[str] = mapped_column(primary_key=True)
    erasure_id: Mapped[UUID | None] = mapped_column(index=True)
    due_at: Mapped[datetime] = mapped_column(index=True)
