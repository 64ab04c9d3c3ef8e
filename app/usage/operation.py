"""What the operator reads of the ledger: sums, entries for a billing system, and whether it is right."""

import heapq
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from sqlalchemy import func, select, text

from app import EaselError
from app.db import Database, now
from app.usage import sums
from app.usage.kinds import Basis
from app.usage.models import UsageEntry
from app.usage.money import to_usd
from app.usage.schemas import UsageEntryView
from app.usage.service import Period, Selection

# In memory, of all tenants together; but as many of each as are worth a query.
ENTRIES_AT_ONCE = 20_000
LEAST_ENTRIES_OF_A_TENANT = 10
Found = dict[str, object]

# What is wrong -> the query that finds it among a tenant's own rows: runs, and numbers of calls.
INVARIANTS = {
    "a call that was not settled has entries": (
        "SELECT e.run_id, e.call FROM usage_entries e JOIN provider_calls c"
        " ON c.tenant_id = e.tenant_id AND c.run_id = e.run_id AND c.number = e.call WHERE c.state <> 'settled'"
    ),
    "a call that was never made has entries": (
        "SELECT e.run_id, e.call FROM usage_entries e WHERE NOT EXISTS (SELECT FROM provider_calls c"
        " WHERE c.tenant_id = e.tenant_id AND c.run_id = e.run_id AND c.number = e.call)"
        " AND e.agent_key <> '' AND e.basis <> 'unpriced'"
    ),
    "a call has not the entries that were booked with it": (
        "SELECT c.run_id, c.number FROM provider_calls c WHERE c.booked_entries <>"
        " (SELECT count(*) FROM usage_entries e"
        " WHERE e.tenant_id = c.tenant_id AND e.run_id = c.run_id AND e.call = c.number)"
    ),
    "a call that was answered has no entries": (
        "SELECT c.run_id, c.number FROM provider_calls c JOIN runs r ON r.tenant_id = c.tenant_id AND r.id = c.run_id"
        " WHERE r.status = 'completed' AND c.response_id IS NOT NULL AND NOT EXISTS (SELECT FROM usage_entries e"
        " WHERE e.tenant_id = c.tenant_id AND e.run_id = c.run_id AND e.call = c.number)"
    ),
    "a run's cost is not the sum of its entries": (
        "SELECT r.id, 0 FROM runs r WHERE r.status NOT IN ('queued', 'running') AND coalesce(r.booked_nano, 0) <>"
        " (SELECT coalesce(sum(e.cost_nano), 0) FROM usage_entries e"
        " WHERE e.tenant_id = r.tenant_id AND e.run_id = r.id)"
    ),
    "an image's cost is not the sum of its entries": (
        "SELECT a.run_id, 0 FROM attachments a WHERE a.cost_nano IS NOT NULL AND a.cost_nano <>"
        " (SELECT coalesce(sum(e.cost_nano), 0) FROM usage_entries e WHERE e.tenant_id = a.tenant_id"
        " AND e.run_id = a.run_id AND e.tool_call_id = a.tool_call_id)"
    ),
    "a picture's cost is shown by no image": (
        "SELECT DISTINCT e.run_id, e.call FROM usage_entries e JOIN attachments a ON a.tenant_id = e.tenant_id"
        " AND a.run_id = e.run_id AND a.tool_call_id = e.tool_call_id AND a.id = coalesce(e.object_id, a.id)"
        " WHERE NOT EXISTS (SELECT FROM attachments b"
        " WHERE b.tenant_id = e.tenant_id AND b.run_id = e.run_id AND b.tool_call_id = e.tool_call_id"
        " AND b.cost_basis IS NOT NULL)"
    ),
    "an entry's cost is not its quantity at its price": (
        "SELECT run_id, call FROM usage_entries WHERE abs(cost_nano - quantity * nano_each) > 0.5"
        " OR (cost_nano IS NULL) <> (nano_each IS NULL)"
    ),
    "a month's counter is not the sum of its entries": (
        "SELECT NULL::uuid, 0 FROM usage_counters c WHERE c.month = date_trunc('month', timezone('UTC', now()))::date"
        " AND c.spent_nano <> (SELECT coalesce(sum(e.cost_nano), 0) FROM usage_entries e"
        " WHERE e.tenant_id = c.tenant_id AND c.user_id IN (e.user_id, '00000000-0000-0000-0000-000000000000')"
        " AND e.created_at >= c.month::timestamp AT TIME ZONE 'UTC')"
    ),
    "a day's counter is not the number of its pictures": (
        "SELECT NULL::uuid, 0 FROM usage_counters c WHERE c.day = timezone('UTC', now())::date"
        " AND c.images <> (SELECT count(DISTINCT (e.run_id, e.tool_call_id)) FROM usage_entries e"
        " WHERE e.tenant_id = c.tenant_id AND c.user_id IN (e.user_id, '00000000-0000-0000-0000-000000000000')"
        " AND e.tool_call_id IS NOT NULL AND e.created_at >= c.day::timestamp AT TIME ZONE 'UTC')"
    ),
    "an ended run has a call that was not settled": (
        "SELECT c.run_id, c.number FROM provider_calls c JOIN runs r ON r.tenant_id = c.tenant_id AND r.id = c.run_id"
        " WHERE c.state <> 'settled' AND r.status NOT IN ('queued', 'running')"
    ),
}


class NotInBooks(EaselError):
    """The operator named something that is not in the books."""


@dataclass(frozen=True)
class Verified:
    """What is wrong, and the calls whose cost is an estimate, to be set beside the provider's bill."""

    faults: list[Found]
    estimated: list[Found]


async def verify(database: Database) -> Verified:
    verified = Verified([], [])
    for tenant_id in await _tenants(database):
        async with database.tenant(tenant_id) as session:
            for fault, query in INVARIANTS.items():
                broken = await session.execute(text(query))
                verified.faults.extend(
                    {"tenant_id": tenant_id, "run_id": run_id, "call": call or None, "fault": fault}
                    for run_id, call in broken
                )
            estimated = await session.execute(
                select(UsageEntry.run_id, UsageEntry.call, func.sum(UsageEntry.cost_nano))
                .where(UsageEntry.basis == Basis.ESTIMATED)
                .group_by(UsageEntry.run_id, UsageEntry.call)
                .order_by(UsageEntry.run_id, UsageEntry.call)
            )
            verified.estimated.extend(
                {"tenant_id": tenant_id, "run_id": run_id, "call": call, "cost_usd": to_usd(int(cost or 0))}
                for run_id, call, cost in estimated
            )
    return verified


async def sum_months(database: Database, month: date, tenant_id: UUID | None) -> list[Found]:
    """A row for each tenant that used something in that month, erased ones among them."""
    period = Period.of(month.replace(day=1), None)
    found: list[Found] = []
    tenants = await _tenants(database)
    if tenant_id is not None and tenant_id not in tenants:
        raise NotInBooks(f"There is no tenant {tenant_id}.")
    for one in tenants if tenant_id is None else [tenant_id]:
        async with database.tenant(one) as session:
            used = await sums.whole(session, Selection(period))
        if used.runs:
            shown = used.model_dump(exclude={"quantities"})
            found.append({"tenant_id": one, "month": f"{month:%Y-%m}", **shown})
    return found


async def entries_after(database: Database, after: UUID | None) -> AsyncIterator[tuple[UUID, UsageEntry]]:
    """The entries of all tenants with a greater id, by id; not those of the last minute: some may not be there yet.

    Raises NotInBooks where no entry is `after`.
    """
    tenants = await _tenants(database)
    if after is not None:
        await _require_entry(database, tenants, after)
    limit = max(LEAST_ENTRIES_OF_A_TENANT, ENTRIES_AT_ONCE // max(1, len(tenants)))
    before = now() - timedelta(minutes=1)
    # The next entry of each tenant that has one, the least id first.
    heads: list[tuple[UUID, UUID, UsageEntry, AsyncIterator[UsageEntry]]] = []
    for tenant_id in tenants:
        ledger = _ledger_after(database, tenant_id, after, before, limit)
        first = await anext(ledger, None)
        if first is not None:
            heapq.heappush(heads, (first.id, tenant_id, first, ledger))
    while heads:
        _, tenant_id, row, ledger = heads[0]
        yield tenant_id, row
        following = await anext(ledger, None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following.id, tenant_id, following, ledger))


async def _ledger_after(
    database: Database, tenant_id: UUID, after: UUID | None, before: datetime, limit: int
) -> AsyncIterator[UsageEntry]:
    """A tenant's entries with a greater id that were made before that time, by id; `limit` are in memory."""
    while True:
        statement = select(UsageEntry).where(UsageEntry.created_at < before).order_by(UsageEntry.id).limit(limit)
        if after is not None:
            statement = statement.where(UsageEntry.id > after)
        async with database.tenant(tenant_id) as session:
            rows = (await session.scalars(statement)).all()
        for row in rows:
            yield row
        if len(rows) < limit:
            return
        after = rows[-1].id


async def _require_entry(database: Database, tenants: Sequence[UUID], entry_id: UUID) -> None:
    for tenant_id in tenants:
        async with database.tenant(tenant_id) as session:
            if await session.scalar(select(UsageEntry.id).where(UsageEntry.id == entry_id)) is not None:
                return
    raise NotInBooks(f"There is no entry {entry_id}: --after is the id of the last line of an export.")


def to_json_line(tenant_id: UUID, row: UsageEntry) -> Found:
    return {"tenant_id": str(tenant_id), **UsageEntryView.of(row).model_dump(mode="json")}


def to_meter_event(tenant_id: UUID, row: UsageEntry) -> Found:
    """As Stripe takes it: `identifier` makes a repeated event harmless for a day."""
    return {
        "event_name": row.kind.value,
        "identifier": str(row.id),
        "timestamp": int(row.created_at.timestamp()),
        "payload": {"stripe_customer_id": str(tenant_id), "value": str(row.quantity), "model": row.model},
    }


async def _tenants(database: Database) -> list[UUID]:
    """All that there are, and those that were erased: their ledgers are kept."""
    both = "SELECT id FROM tenants UNION SELECT tenant_id FROM erasures WHERE kind = 'tenant' ORDER BY 1"
    async with database.identity() as session:
        return list((await session.scalars(text(both))).all())
