"""Booking a call: its entries and its end in one statement, so that nothing is booked twice or only in part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    ColumnElement,
    Insert,
    Integer,
    Numeric,
    Select,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    exists,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import TypeEngine

from app.db import uuid7
from app.inserts import insert_where
from app.usage.kinds import WORSE, Basis
from app.usage.models import CallState, ProviderCall, UsageEntry
from app.usage.prices import Priced

_ENTRY = (
    column("id", Uuid),
    column("model", Text),
    column("kind", Text),
    column("quantity", BigInteger),
    column("basis", Text),
    column("nano_each", Numeric),
    column("cost_nano", BigInteger),
    column("tool_call_id", Text),
    column("object_id", Uuid),
)


@dataclass(frozen=True)
class Cost:
    """A sum of entries: nano-dollars, None where none of them has a price, and the worst basis among them."""

    nano: int | None = None
    basis: Basis | None = None

    @classmethod
    def of(cls, entries: Sequence[Priced]) -> "Cost":
        priced = [entry.cost_nano for entry in entries if entry.cost_nano is not None]
        bases = [entry.basis for entry in entries]
        return cls(sum(priced) if priced else None, max(bases, key=WORSE.__getitem__, default=None))

    def __add__(self, other: "Cost") -> "Cost":
        nanos = [nano for nano in (self.nano, other.nano) if nano is not None]
        bases = [basis for basis in (self.basis, other.basis) if basis is not None]
        return Cost(sum(nanos) if nanos else None, max(bases, key=WORSE.__getitem__, default=None))


def open_call(held: CTE, names: Sequence[str]) -> CTE:
    """Writes down a call that is about to be sent, to stand in one statement with `held`; twice is as good as once."""
    return insert_where(ProviderCall, names, held).on_conflict_do_nothing().cte("call")


def name_call(held: CTE) -> CTE:
    """Writes down which response the provider has named for it; takes `values_of_name`."""
    call = (ProviderCall.run_id == bindparam("named_run", type_=Uuid)) & (
        ProviderCall.number == bindparam("named_number", type_=Integer)
    )
    is_asked = call & (ProviderCall.state == CallState.ASKED) & exists(select(held.c.id))
    named = {"state": CallState.NAMED, "response_id": bindparam("named_response", type_=Text)}
    return update(ProviderCall).where(is_asked).values(named).cte("named")


def values_of_name(run_id: UUID, number: int, response_id: str) -> dict[str, Any]:
    return {"named_run": run_id, "named_number": number, "named_response": response_id}


async def settle(session: AsyncSession, settlement: "Settlement") -> bool:
    """Of a run that nobody holds any more; False where it was settled before."""
    statement = _settling(with_entries=bool(settlement.entries))
    return await session.scalar(statement, settlement.values) is not None


@cache
def _settling(*, with_entries: bool) -> Select[int]:
    settled, *others = settle_call(None, with_entries=with_entries)
    return select(settled.c.number).add_cte(*others)


def settle_call(held: CTE | None, *, with_entries: bool) -> list[CTE]:
    """To stand in one statement with `held`, which has a row where the worker holds the run; None needs no run.

    Takes a settlement's `values`. Once: a call that is settled already is left as it is.
    """
    is_open = _is_unsettled()
    settled = (
        update(ProviderCall)
        .where(is_open if held is None else is_open & exists(select(held.c.id)))
        .values(
            state=CallState.SETTLED,
            settled_at=func.now(),
            booked_entries=_given("count", Integer),
            response_id=func.coalesce(cast(_given("response", Text), Text), ProviderCall.response_id),
        )
        .returning(ProviderCall.number)
        .cte("settled")
    )
    return [settled, _insert_entries(settled).cte("entries")] if with_entries else [settled]


def awaits_settlement() -> ColumnElement[bool]:
    """Whether the call is not settled yet; takes a settlement's `values`."""
    return exists().where(_is_unsettled())


def _is_unsettled() -> ColumnElement[bool]:
    call = (ProviderCall.run_id == _given("run", Uuid)) & (ProviderCall.number == _given("number", Integer))
    return call & (ProviderCall.tenant_id == _given("tenant", Uuid)) & (ProviderCall.state != CallState.SETTLED)


def _given(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]]) -> BindParameter[Any]:
    return bindparam(f"settled_{name}", type_=kind)


def _insert_entries(settled: CTE) -> Insert:
    lists = (_given(f"entry_{one.name}", ARRAY(one.type)) for one in _ENTRY)
    given = func.unnest(*lists).table_valued(*_ENTRY, name="given").render_derived()
    same = {
        "tenant_id": _given("tenant", Uuid),
        "user_id": _given("user", Uuid),
        "run_id": _given("run", Uuid),
        "call": _given("number", Integer),
        "agent_key": _given("agent", Text),
        # By the database's clock: its day and month are those of the counters.
        "created_at": func.now(),
    }
    source: Select[tuple[object, ...]] = (
        select(*same.values(), *given.c).select_from(settled).join(given, literal(True))
    )
    return (
        insert(UsageEntry)
        .from_select([*same, *(one.name for one in _ENTRY)], source, include_defaults=False)
        .on_conflict_do_nothing()
    )


async def cost_without_image(session: AsyncSession, run_id: UUID, tool_call_id: str) -> Cost:
    """What was booked for a picture when it had no row."""
    entry = (UsageEntry.run_id == run_id) & (UsageEntry.tool_call_id == tool_call_id) & UsageEntry.object_id.is_(None)
    found = await session.execute(select(UsageEntry.cost_nano, UsageEntry.basis).where(entry))
    return sum((Cost(nano, basis) for nano, basis in found), Cost())


@dataclass(frozen=True)
class Settlement:
    """The end of a call, and what it used; without entries nothing was bought. `object_ids` are by tool call."""

    tenant_id: UUID
    user_id: UUID
    run_id: UUID
    number: int
    agent_key: str
    response_id: str | None
    entries: Sequence[Priced]
    object_ids: Mapping[str, UUID]

    @property
    def cost(self) -> Cost:
        return Cost.of(self.entries)

    @property
    def images(self) -> int:
        """How many pictures it is for."""
        return len({entry.of.tool_call_id for entry in self.entries if entry.of.tool_call_id is not None})

    def costs_of_images(self) -> dict[UUID, Cost]:
        """Their shares of what the image model used."""
        found: dict[UUID, Cost] = {}
        for entry in self.entries:
            object_id = self.object_ids.get(entry.of.tool_call_id or "")
            if object_id is not None:
                found[object_id] = found.get(object_id, Cost()) + Cost.of([entry])
        return found

    @property
    def values(self) -> dict[str, Any]:
        """What `settle_call` takes."""
        entries = self.entries
        lists: dict[str, list[Any]] = {
            "id": [uuid7() for _ in entries],
            "model": [entry.of.model for entry in entries],
            "kind": [entry.of.kind.value for entry in entries],
            "quantity": [entry.of.quantity for entry in entries],
            "basis": [entry.basis.value for entry in entries],
            "nano_each": [entry.nano_each for entry in entries],
            "cost_nano": [entry.cost_nano for entry in entries],
            "tool_call_id": [entry.of.tool_call_id for entry in entries],
            "object_id": [self.object_ids.get(entry.of.tool_call_id or "") for entry in entries],
        }
        return {
            "settled_tenant": self.tenant_id,
            "settled_user": self.user_id,
            "settled_run": self.run_id,
            "settled_number": self.number,
            "settled_agent": self.agent_key,
            "settled_response": self.response_id,
            "settled_count": len(entries),
            **{f"settled_entry_{name}": found for name, found in lists.items()},
        }
