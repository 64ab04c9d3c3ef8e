"""The usage ledger: append only, one row for each kind of token of a run."""

from uuid import UUID

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped

from app.db import Base, Identified


class UsageEntry(Identified, Base):
    """`kind` names what was used (`input_tokens`, `image_output_tokens`, …); `quantity` is a count of tokens."""

    __tablename__ = "usage_entries"
    # No foreign keys: what was used stays in the books when a conversation is deleted, or the tenant erased.
    __table_args__ = (UniqueConstraint("tenant_id", "run_id", "kind"),)

    tenant_id: Mapped[UUID]
    user_id: Mapped[UUID]
    run_id: Mapped[UUID]
    model: Mapped[str]
    kind: Mapped[str]
    quantity: Mapped[int]
