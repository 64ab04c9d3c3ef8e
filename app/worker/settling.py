"""Books the calls that nobody will end: their run was deleted, and the worker that held it is lost."""

import asyncio
import logging
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, exists, func, select

from app.logs import tagged
from app.provider.errors import ProviderError
from app.provider.usage import ResponseReport
from app.runs.models import OPEN, Run
from app.settings import Settings
from app.usage.ledger import Settlement, settle
from app.usage.models import CallState, ProviderCall
from app.worker.context import WorkerContext
from app.worker.errors import cause_of
from app.worker.open_call import OpenCall

log = logging.getLogger(__name__)

CALLS_AT_ONCE = 40
# A worker that lives has settled the call of a deleted run by then.
SETTLED_SOON = timedelta(seconds=10)
READ_SECONDS = 5.0


def left_open(settings: Settings) -> ColumnElement[bool]:
    """Of a call: nobody will settle it."""
    given = timedelta(seconds=settings.run_lease_seconds) + SETTLED_SOON
    # Of an open run its worker settles them, or the one that takes it over.
    is_open = exists(select(Run.id).where(Run.id == ProviderCall.run_id, Run.status.in_(OPEN)))
    return (ProviderCall.state != CallState.SETTLED) & (ProviderCall.asked_at < func.now() - given) & ~is_open


async def settle_calls(ctx: WorkerContext) -> None:
    """By what the provider has of them; where it has nothing, by what they were expected to use."""
    left = select(ProviderCall.tenant_id, ProviderCall.run_id, ProviderCall.number).where(left_open(ctx.settings))
    async with ctx.database.identity() as session:
        found = (await session.execute(left.order_by(ProviderCall.asked_at).limit(CALLS_AT_ONCE))).all()
    for tenant_id, run_id, number in found:
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
    entries = call.entries(ctx.prices)
    settlement = Settlement(
        row.tenant_id, row.user_id, row.run_id, row.number, row.agent_key, row.response_id, entries, {}
    )
    async with ctx.database.tenant(row.tenant_id) as session:
        if await settle(session, settlement):
            call.count_tokens()
            log.info("call.settled", extra={"number": row.number})


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
