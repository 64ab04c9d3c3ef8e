"""What a worker writes beside its run, in the statement that changes it: the calls, what they used, what is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import CTE, BigInteger, Text, Uuid, column, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm.attributes import set_committed_value

from app.attachments.models import Attachment
from app.runs.models import Run
from app.runs.provider_objects import ProviderObjectKind, insert_kept
from app.usage.ledger import Cost, Settlement, name_call, open_call
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
    def charges_images(self) -> bool:
        return self.settlement is not None and bool(self.settlement.costs_of_images())

    def statements(self, run: Run, held: CTE) -> list[CTE]:
        found: list[CTE] = []
        if self.kept:
            found.append(insert_kept(run.tenant_id, self.kept, held).cte("kept"))
        if self.call is not None:
            found.append(open_call(self.call, held))
        if self.named is not None:
            found.append(name_call(run.id, *self.named, held))
        if self.settlement is not None:
            found += self.settlement.statements(held)
            if costs := self.settlement.costs_of_images():
                found.append(_charge_images(costs, held))
        return found

    def show_costs(self, rows: Sequence[Attachment]) -> None:
        """In images that were read before they were charged."""
        costs = self.settlement.costs_of_images() if self.settlement else {}
        for row in rows:
            if (cost := costs.get(row.id)) is not None:
                set_committed_value(row, "cost_nano", cost.nano)
                set_committed_value(row, "cost_basis", cost.basis)


def _charge_images(costs: Mapping[UUID, Cost], held: CTE) -> CTE:
    lists = (
        literal(list(costs), ARRAY(Uuid)),
        literal([cost.nano for cost in costs.values()], ARRAY(BigInteger)),
        literal([cost.basis.value if cost.basis else None for cost in costs.values()], ARRAY(Text)),
    )
    columns = (column("object_id", Uuid), column("nano", BigInteger), column("basis", Text))
    given = func.unnest(*lists).table_valued(*columns, name="charged").render_derived()
    charged = update(Attachment).where(Attachment.id == given.c.object_id, exists(select(held.c.id)))
    return charged.values(cost_nano=given.c.nano, cost_basis=given.c.basis).cte("charged_images")
