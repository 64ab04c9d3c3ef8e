"""Books the calls that nobody will end: their run was deleted, or has ended, and the worker that held it is lost."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import exists, select

from app.logs import tagged
from app.provider.errors import ProviderError
from app.provider.usage import ResponseReport
from app.runs.models import OPEN, Run
from app.usage.ledger import Cost, Settlement, settle
from app.usage.models import CallState, ProviderCall
from app.worker.context import WorkerContext
from app.worker.errors import cause_of
from app.worker.open_call import ENDED, OpenCall, usage_of

log = logging.getLogger(__name__)

CALLS_AT_ONCE = 40
MOST_SEEN = 1_000
# A worker that lives has settled the call of a run that was deleted, or ended, by then.
SETTLED_SOON = timedelta(seconds=10)
READ_SECONDS = 5.0

# Of a call: no worker holds its run. Of an open run its worker settles them, or the one that takes it over.
LEFT_OPEN = (ProviderCall.state != CallState.SETTLED) & ~exists(
    select(Run.id).where(Run.id == ProviderCall.run_id, Run.status.in_(OPEN))
)


Key = tuple[UUID, UUID, int]


class Seen:
    """When this process has first seen a call that no worker settles."""

    def __init__(self) -> None:
        self._since: dict[Key, float] = {}

    def for_long(self, calls: Sequence[Key], seconds: float) -> list[Key]:
        """Those that it saw so long ago, of all that it sees now."""
        moment = time.monotonic()
        self._since = {call: self._since.get(call, moment) for call in calls}
        return [call for call, since in self._since.items() if moment - since >= seconds]


async def settle_calls(ctx: WorkerContext, seen: Seen) -> None:
    """By what the provider has of them; where it has nothing, by what they were expected to use."""
    left = select(ProviderCall.tenant_id, ProviderCall.run_id, ProviderCall.number).where(LEFT_OPEN)
    async with ctx.database.identity() as session:
        found = (await session.execute(left.order_by(ProviderCall.asked_at).limit(MOST_SEEN))).all()
    calls = [(row.tenant_id, row.run_id, row.number) for row in found]
    due = seen.for_long(calls, ctx.settings.run_lease_seconds + SETTLED_SOON.total_seconds())
    for tenant_id, run_id, number in due[:CALLS_AT_ONCE]:
        await _settle(ctx, tenant_id, run_id, number)


async def _settle(ctx: WorkerContext, tenant_id: UUID, run_id: UUID, number: int) -> None:
    async with ctx.database.tenant(tenant_id) as session:
        row = await session.get(ProviderCall, (tenant_id, run_id, number))
    if row is None:
        return
    with tagged(tenant_id=tenant_id, user_id=row.user_id, run_id=run_id):
        await _settle_row(ctx, row)


async def _settle_row(ctx: WorkerContext, row: ProviderCall) -> None:
    call = OpenCall.of(row)
    call.report = await _report(ctx, row)
    call.ended = call.report is not None and call.report.status in ENDED
    entries = call.entries(ctx.prices)
    settlement = Settlement(
        row.tenant_id, row.user_id, row.run_id, row.number, row.agent_key, row.response_id, entries, {}
    )
    async with ctx.database.tenant(row.tenant_id) as session:
        # Whoever locks the run and the counters locks them in this order.
        run = await session.get(Run, row.run_id, with_for_update=True)
        if await settle(session, settlement):
            _add(run, call, settlement.cost)
            call.count_tokens()
            log.info("call.settled", extra={"number": row.number})


def _add(run: Run | None, call: OpenCall, cost: Cost) -> None:
    """The run may have ended without it."""
    if run is not None and cost.basis is not None:
        whole = Cost(run.booked_nano, run.booked_basis) + cost
        run.booked_nano, run.booked_basis = whole.nano, whole.basis
        run.usage = dict(Counter(run.usage or {}) + Counter(usage_of(call.report)))


async def _report(ctx: WorkerContext, row: ProviderCall) -> ResponseReport | None:
    if row.response_id is None:
        return None
    try:
        async with asyncio.timeout(READ_SECONDS):
            # Nobody wants what the provider may still be at.
            return await ctx.provider.stored.stop(row.response_id)
    except (ProviderError, TimeoutError) as error:
        log.warning("call.not_at_provider", extra={"error": cause_of(error) or type(error).__name__})
        return None
