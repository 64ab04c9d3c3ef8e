"""The calls that were paid for; the ledger: append only, one row for each kind that a call used; plans and counters."""

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, Index, Numeric, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified
from app.usage.kinds import Basis, Kind

# Nano-dollars: a bigint holds nine billion dollars of them.
Nano = BigInteger


class CallState(StrEnum):
    """`asked`: on its way; `named`: the provider has named its response; `settled`: its entries are in the ledger."""

    ASKED = "asked"
    NAMED = "named"
    SETTLED = "settled"


class ProviderCall(Base):
    """One paid request of a run, committed before it is sent; `number` counts from 1.

    `model` and `image_model` are those that were asked. `characters` and `given_tokens` are its estimate: of
    instructions, history and request, and of the pictures that it gives. `booked_entries` is how many entries came with
    its end, null where a release settled it that did not count them. `reserved_images` and `reserved_nano` are held
    until it is settled where its run is deleted meanwhile; null where the plan has no such limit.
    """

    __tablename__ = "provider_calls"
    # No foreign keys here and below: what was bought stays in the books when a run is deleted, or the tenant erased.
    __table_args__ = (Index("ix_provider_calls_open", "asked_at", postgresql_where=text("state <> 'settled'")),)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    agent_key: Mapped[str]
    model: Mapped[str]
    image_model: Mapped[str | None]
    background: Mapped[bool]
    characters: Mapped[int]
    given_tokens: Mapped[int]
    asked_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    response_id: Mapped[str | None]
    state: Mapped[CallState] = mapped_column(EnumText(CallState), default=CallState.ASKED, server_default="asked")
    settled_at: Mapped[datetime | None]
    booked_entries: Mapped[int | None]
    reserved_images: Mapped[int | None] = mapped_column(BigInteger)
    reserved_nano: Mapped[int | None] = mapped_column(Nano)


class UsageEntry(Identified, Base):
    """What a call used of one kind, for one picture where it was for one (`tool_call_id`, and `object_id` if stored).

    `nano_each` is the price at that time, in nano-dollars for one; it and `cost_nano` are null where none was known.
    """

    __tablename__ = "usage_entries"
    __table_args__ = (
        UniqueConstraint("tenant_id", "run_id", "call", "kind", "tool_call_id", postgresql_nulls_not_distinct=True),
        Index("ix_usage_entries_time", "tenant_id", "created_at", "id"),
    )

    tenant_id: Mapped[UUID]
    user_id: Mapped[UUID]
    run_id: Mapped[UUID]
    # The defaults are those of releases that did not know these columns.
    call: Mapped[int] = mapped_column(server_default="1")
    agent_key: Mapped[str] = mapped_column(server_default="")
    model: Mapped[str]
    kind: Mapped[Kind] = mapped_column(EnumText(Kind))
    quantity: Mapped[int] = mapped_column(BigInteger)
    basis: Mapped[Basis] = mapped_column(EnumText(Basis), server_default="unpriced")
    nano_each: Mapped[Decimal | None] = mapped_column(Numeric)
    cost_nano: Mapped[int | None] = mapped_column(Nano)
    tool_call_id: Mapped[str | None]
    object_id: Mapped[UUID | None]


class Plan(Base):
    """How much a tenant may use (the columns of its limits), and each person in it (`user_…`); null is unlimited.

    Money is in nano-dollars.
    """

    __tablename__ = "plans"

    name: Mapped[str] = mapped_column(primary_key=True)
    runs_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    runs_at_once: Mapped[int | None] = mapped_column(BigInteger)
    streams_at_once: Mapped[int | None] = mapped_column(BigInteger)
    images_per_day: Mapped[int | None] = mapped_column(BigInteger)
    spend_per_month_nano: Mapped[int | None] = mapped_column(Nano)
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    user_runs_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    user_runs_at_once: Mapped[int | None] = mapped_column(BigInteger)
    user_streams_at_once: Mapped[int | None] = mapped_column(BigInteger)
    user_images_per_day: Mapped[int | None] = mapped_column(BigInteger)
    user_spend_per_month_nano: Mapped[int | None] = mapped_column(Nano)


class UsageCounter(Base):
    """What a tenant (its row's `user_id` is all zeros), or a person in it, has used: sums of the ledger, by a trigger.

    `spent_nano` is of the `month` that begins with that day, `images` of the `day`, in UTC. `full_at` is when the
    bucket of runs that may be started is full again. The tenant's row is the lock under which limits are judged.
    """

    __tablename__ = "usage_counters"

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    full_at: Mapped[datetime | None]
    month: Mapped[date | None]
    spent_nano: Mapped[int] = mapped_column(Nano, default=0, server_default="0")
    day: Mapped[date | None]
    images: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
