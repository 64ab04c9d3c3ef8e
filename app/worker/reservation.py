"""What a run holds of its plan's limits: taken back as its calls are settled, enlarged before each further one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import now
from app.identity.models import Tenant
from app.runs.models import Run
from app.usage import counters
from app.usage.estimates import CallEstimate
from app.usage.kinds import Basis
from app.usage.ledger import Cost, Settlement
from app.usage.limits import Limit, judge
from app.usage.models import Plan
from app.usage.prices import Prices


@dataclass(frozen=True)
class Need:
    """Of one call: pictures, and nano-dollars, None where a part of it has no price."""

    images: int
    nano: int | None

    @classmethod
    def of(cls, estimate: CallEstimate, options: Mapping[str, Any], prices: Prices) -> "Need":
        cost = Cost.of(prices.price(estimate.reserved(options), at=now()))
        return cls(int(estimate.image_model is not None), None if cost.basis == Basis.UNPRICED else cost.nano)


def is_reserved(run: Run) -> bool:
    """Whether its plan limited what it may draw, store or spend as it was admitted."""
    return run.reserved_images is not None or run.reserved_nano is not None


@dataclass(frozen=True)
class Less:
    """Of a column: what it has less so much, 0 at least, as the settlement beside it settles the call."""

    amount: int


def without_settled(run: Run, settlement: Settlement | None) -> dict[str, Any]:
    """The columns of the run once what is settled is counted as used: it is held no more."""
    values: dict[str, Any] = {}
    if settlement is not None and run.reserved_images is not None:
        values["reserved_images"] = Less(settlement.images)
    if settlement is not None and run.reserved_nano is not None:
        values["reserved_nano"] = Less(settlement.cost.nano or 0)
    return values


async def enlarge(session: AsyncSession, run: Run, need: Need) -> None:
    """So that the call may take as much; judged is only what it takes beyond what is held.

    The run's row is locked by this transaction. Raises LimitExceeded or BudgetExceeded; then it must not be committed.
    """
    held = (await session.execute(select(Run.reserved_images, Run.reserved_nano).where(Run.id == run.id))).one()
    wanted: dict[Limit, int | None] = {}
    grown: dict[str, int] = {}
    if held.reserved_images is not None and need.images > held.reserved_images:
        wanted |= {Limit.IMAGES_PER_DAY: need.images - held.reserved_images, Limit.STORED_BYTES: 1}
        grown["reserved_images"] = need.images
    if held.reserved_nano is not None and (need.nano is None or need.nano > held.reserved_nano):
        wanted[Limit.SPEND_PER_MONTH] = None if need.nano is None else need.nano - held.reserved_nano
        grown["reserved_nano"] = need.nano or held.reserved_nano
    if not wanted:
        return
    plan = (await session.scalars(select(Plan).join(Tenant).where(Tenant.id == run.tenant_id))).one()
    with_bytes = plan.stored_bytes is not None and Limit.STORED_BYTES in wanted
    standing = await counters.lock(session, plan, run.tenant_id, run.user_id, with_bytes=with_bytes)
    judge(standing.states, wanted, standing.at)
    await session.execute(update(Run).where(Run.id == run.id).values(grown))
