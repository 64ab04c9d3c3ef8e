"""What the provider keeps of runs: responses and uploaded files, each recorded as soon as its id is known."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CTE, ForeignKeyConstraint, Index, Text, Uuid, column, func, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText


class ProviderObjectKind(StrEnum):
    RESPONSE = "response"
    FILE = "file"


Kept = Mapping[str, ProviderObjectKind]
"""By the provider's ids."""


class ProviderObject(Base):
    """Once its run is gone (`run_id` null) it is to be deleted at the provider, from `due_at` on."""

    __tablename__ = "provider_objects"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.id"], ondelete="SET NULL (run_id)"),
        Index("ix_provider_objects_run", "tenant_id", "run_id"),
        Index("ix_provider_objects_left", "due_at", postgresql_where=text("run_id IS NULL")),
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    provider_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[ProviderObjectKind] = mapped_column(EnumText(ProviderObjectKind))
    run_id: Mapped[UUID | None]
    erasure_id: Mapped[UUID | None] = mapped_column(index=True)
    due_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


def insert_kept(tenant_id: UUID, kept: Kept, held: CTE) -> Insert:
    """To stand in one statement with `held`, which has the run's id where the worker holds it.

    Where it does not, what nobody will use is to be deleted at the provider.
    """
    columns = (column("id", Text), column("kind", Text))
    ids, kinds = literal(list(kept), ARRAY(Text)), literal(list(kept.values()), ARRAY(Text))
    given = func.unnest(ids, kinds).table_valued(*columns, name="given").render_derived()
    run_id = select(held.c.id).scalar_subquery()
    source = select(literal(tenant_id, Uuid), run_id, given.c.id, given.c.kind)
    filled = ["tenant_id", "run_id", "provider_id", "kind"]
    return insert(ProviderObject).from_select(filled, source, include_defaults=False).on_conflict_do_nothing()
