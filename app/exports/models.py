"""Exports: archives of what a tenant, or one of its users, has here."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified
from app.storage import keys


class ExportScope(StrEnum):
    """Everything of the tenant, or what belongs to the user who asks."""

    TENANT = "tenant"
    ME = "me"


class ExportStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


OPEN = (ExportStatus.QUEUED, ExportStatus.RUNNING)
IS_OPEN = text("status IN ('queued', 'running')")


class Export(Identified, Base):
    """The row is the outbox of its task and the fence of its workers, as a run's is.

    `attempt` counts the claims, and each attempt has an object of its own. At `expires_at` an export that has ended is
    deleted with its archive; `size_bytes` and `sha256` (hex) are the archive's.
    """

    __tablename__ = "exports"
    __table_args__ = (
        # One of a user's exports of each scope is open at a time.
        Index("uq_exports_open", "tenant_id", "user_id", "scope", unique=True, postgresql_where=IS_OPEN),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    scope: Mapped[ExportScope] = mapped_column(EnumText(ExportScope))
    status: Mapped[ExportStatus] = mapped_column(EnumText(ExportStatus), default=ExportStatus.QUEUED)
    attempt: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    expires_at: Mapped[datetime]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None]

    @property
    def storage_key(self) -> str:
        """Of this attempt: one that lost its lease overwrites no other's archive."""
        return archive_key(self.tenant_id, self.id, self.attempt)

    @property
    def storage_keys(self) -> list[str]:
        """Of all attempts."""
        return [archive_key(self.tenant_id, self.id, attempt + 1) for attempt in range(self.attempt)]


def archive_key(tenant_id: UUID, export_id: UUID, attempt: int) -> str:
    return keys.check_key(f"{keys.export_prefix(tenant_id, export_id)}{attempt}.zip")
