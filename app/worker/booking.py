"""What a worker writes beside its run, in the statement that changes it: the calls, what they used, what is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, BigInteger, Text, Uuid, bindparam, column, exists, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm.attributes import set_committed_value

from app.attachments.models import Attachment
from app.inserts import names_of, values_of
from app.runs.models import Run
from app.runs.provider_objects import ProviderObjectKind, insert_kept, values_of_kept
from app.usage.ledger import Cost, Settlement, name_call, open_call, settle_call, values_of_name
from app.usage.models import ProviderCall
from app.worker.reservation import Need


@dataclass(frozen=True)
class Booking:
    """`call` is about to be sent, `named` is a call's number with the id of its response, `settlement` ends a call.

    `kept` is what the provider keeps of the run: it is written where the worker holds the run no more, too. `need` is
    what the call may take, None where no limit is to be asked.
    """

    kept: Mapping[str, ProviderObjectKind] = field(default_factory=dict[str, ProviderObjectKind])
    call: ProviderCall | None = None
    named: tuple[int, str] | None = None
    settlement: Settlement | None = None
    need: Need | None = None

    @property
    def parts(self) -> "Parts":
        settlement = self.settlement
        return Parts(
            bool(self.kept),
            names_of(self.call) if self.call is not None else (),
            self.named is not None,
            settlement is not None,
            bool(settlement and settlement.entries),
            bool(settlement and settlement.costs_of_images()),
        )

    def values(self, run: Run) -> dict[str, Any]:
        """What the statements of its parts take."""
        found: dict[str, Any] = values_of_kept(run.tenant_id, self.kept) if self.kept else {}
        if self.call is not None:
            found |= values_of(self.call)
        if self.named is not None:
            found |= values_of_name(run.id, *self.named)
        if self.settlement is not None:
            found |= self.settlement.values
            if costs := self.settlement.costs_of_images():
                found |= _values_of_charge(costs)
        return found

    def show_costs(self, rows: Sequence[Attachment]) -> None:
        """In images that were read before they were charged."""
        costs = self.settlement.costs_of_images() if self.settlement else {}
        for row in rows:
            if (cost := costs.get(row.id)) is not None:
                set_committed_value(row, "cost_nano", cost.nano)
                set_committed_value(row, "cost_basis", cost.basis)


@dataclass(frozen=True)
class Parts:
    """What a booking consists of: which statements it takes. `call` names the columns of the call's row."""

    kept: bool = False
    call: tuple[str, ...] = ()
    named: bool = False
    settlement: bool = False
    entries: bool = False
    charges_images: bool = False

    def statements(self, held: CTE) -> list[CTE]:
        """To stand in one statement with `held`, which has a row where the worker holds the run."""
        found: list[CTE] = []
        if self.kept:
            found.append(insert_kept(held).cte("kept"))
        if self.call:
            found.append(open_call(held, self.call))
        if self.named:
            found.append(name_call(held))
        if self.settlement:
            found += settle_call(held, with_entries=self.entries)
        if self.charges_images:
            found.append(_charge_images(held))
        return found


_CHARGE = (column("object_id", Uuid), column("nano", BigInteger), column("basis", Text))


def _charge_images(held: CTE) -> CTE:
    lists = (bindparam(f"charged_{one.name}", type_=ARRAY(one.type)) for one in _CHARGE)
    given = func.unnest(*lists).table_valued(*_CHARGE, name="charged").render_derived()
    charged = update(Attachment).where(Attachment.id == given.c.object_id, exists(select(held.c.id)))
    return charged.values(cost_nano=given.c.nano, cost_basis=given.c.basis).cte("charged_images")


def _values_of_charge(costs: Mapping[UUID, Cost]) -> dict[str, Any]:
    return {
        "charged_object_id": list(costs),
        "charged_nano": [cost.nano for cost in costs.values()],
        "charged_basis": [cost.basis.value if cost.basis else None for cost in costs.values()],
    }
