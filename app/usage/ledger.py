"""Booking a call: its entries and its end in one statement, so that nothing is booked twice or only in part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import (
    CTE,
    BigInteger,
    Insert,
    Integer,
    Numeric,
    Select,
    Text,
    Uuid,
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

from app.db import uuid7
from app.usage.kinds import WORSE, Basis
from app.usage.models import CallState, ProviderCall, UsageEntry
from app.usage.prices import Priced

_GIVEN = (
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


def open_call(call: ProviderCall, held: CTE) -> CTE:
    """Writes down a call that is about to be sent, to stand in one statement with `held`; twice is as good as once."""
    columns = ProviderCall.__table__.columns
    values = {name: value for name, value in vars(call).items() if name in columns}
    row = select(*(literal(value, columns[name].type) for name, value in values.items())).select_from(held)
    return insert(ProviderCall).from_select(list(values), row, False).on_conflict_do_nothing().cte("call")


def name_call(run_id: UUID, number: int, response_id: str, held: CTE) -> CTE:
    """Writes down which response the provider has named for it."""
    call = (ProviderCall.run_id == run_id) & (ProviderCall.number == number)
    is_asked = call & (ProviderCall.state == CallState.ASKED) & exists(select(held.c.id))
    return update(ProviderCall).where(is_asked).values(state=CallState.NAMED, response_id=response_id).cte("named")


async def settle(session: AsyncSession, settlement: "Settlement") -> bool:
    """Of a run that nobody holds any more; False where it was settled before."""
    settled, *others = settlement.statements(None)
    statement = select(settled.c.number).add_cte(*others)
    return await session.scalar(statement) is not None


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

    def statements(self, held: CTE | None) -> list[CTE]:
        """To stand in one statement with `held`, which has a row where the worker holds the run; None needs no run.

        Once: a call that is settled already is left as it is.
        """
        call = (ProviderCall.run_id == self.run_id) & (ProviderCall.number == self.number)
        is_open = call & (ProviderCall.tenant_id == self.tenant_id) & (ProviderCall.state != CallState.SETTLED)
        settled = (
            update(ProviderCall)
            .where(is_open if held is None else is_open & exists(select(held.c.id)))
            .values(
                state=CallState.SETTLED,
                settled_at=func.now(),
                booked_entries=len(self.entries),
                response_id=func.coalesce(cast(self.response_id, Text), ProviderCall.response_id),
            )
            .returning(ProviderCall.number)
            .cte(f"settled_{self.number}")
        )
        return [settled, self._insert(settled).cte(f"entries_{self.number}")] if self.entries else [settled]

    def _insert(self, settled: CTE) -> Insert:
        entries = self.entries
        lists = (
            literal([uuid7() for _ in entries], ARRAY(Uuid)),
            literal([entry.of.model for entry in entries], ARRAY(Text)),
            literal([entry.of.kind.value for entry in entries], ARRAY(Text)),
            literal([entry.of.quantity for entry in entries], ARRAY(BigInteger)),
            literal([entry.basis.value for entry in entries], ARRAY(Text)),
            literal([entry.nano_each for entry in entries], ARRAY(Numeric)),
            literal([entry.cost_nano for entry in entries], ARRAY(BigInteger)),
            literal([entry.of.tool_call_id for entry in entries], ARRAY(Text)),
            literal([self.object_ids.get(entry.of.tool_call_id or "") for entry in entries], ARRAY(Uuid)),
        )
        given = func.unnest(*lists).table_valued(*_GIVEN, name="given").render_derived()
        same = {
            "tenant_id": literal(self.tenant_id, Uuid),
            "user_id": literal(self.user_id, Uuid),
            "run_id": literal(self.run_id, Uuid),
            "call": literal(self.number, Integer),
            "agent_key": literal(self.agent_key, Text),
            # By the database's clock: its day and month are those of the counters.
            "created_at": func.now(),
        }
        source: Select[tuple[object, ...]] = (
            select(*same.values(), *given.c).select_from(settled).join(given, literal(True))
        )
        return (
            insert(UsageEntry)
            .from_select([*same, *(one.name for one in _GIVEN)], source, include_defaults=False)
            .on_conflict_do_nothing()
        )
