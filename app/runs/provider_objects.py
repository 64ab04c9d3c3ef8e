"""What the provider keeps of runs: responses and uploaded files, each recorded as soon as its id is known."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, ForeignKeyConstraint, Index, Text, Uuid, bindparam, column, func, select, text
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


def insert_kept(held: CTE) -> Insert:
    """To stand in one statement with `held`, which has the run's id where the worker holds it; takes `values_of_kept`.

    Where it does not, what nobody will use is to be deleted at the provider.
    """
    columns = (column("id", Text), column("kind", Text))
    lists = (bindparam("kept_ids", type_=ARRAY(Text)), bindparam("kept_kinds", type_=ARRAY(Text)))
    given = func.unnest(*lists).table_valued(*columns, name="kept_given").render_derived()
    run_id = select(held.c.id).scalar_subquery()
    source = select(bindparam("kept_tenant", type_=Uuid), run_id, given.c.id, given.c.kind)
    filled = ["tenant_id", "run_id", "provider_id", "kind"]
    return insert(ProviderObject).from_select(filled, source, include_defaults=False).on_conflict_do_nothing()


def values_of_kept(tenant_id: UUID, kept: Kept) -> dict[str, Any]:
    return {"kept_tenant": tenant_id, "kept_ids": list(kept), "kept_kinds": list(kept.values())}
