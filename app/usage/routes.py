"""What was used, what it cost, and how much a plan allows."""

from datetime import date
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import Field

from app.identity.actor import CurrentSettings, TenantSession, may
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.input_limits import STORABLE
from app.openapi import Router
from app.paging import Paging
from app.usage import counters, sums
from app.usage.schemas import LimitsView, UsageEntryPage, UsageEntryView, UsagePage
from app.usage.service import Period, Selection, entries, readable_by

router = Router(prefix="/v1", tags=["usage"])

# What Python and Postgres can both count from and to.
Day = Annotated[date, Field(ge=date(2000, 1, 1), le=date(9000, 1, 1))] | None
Reader = Annotated[Actor, may(Permission.READ_USAGE)]


FirstDay = Annotated[Day, Query(alias="from", description="The first day, in UTC; without it this month's.")]
DayAfter = Annotated[Day, Query(alias="to", description="The day after the last; without it the month's end.")]


@router.get("/usage", response_model_exclude_unset=True)
async def sum_usage(
    actor: Reader,
    session: TenantSession,
    first: FirstDay = None,
    after: DayAfter = None,
    group_by: Annotated[str, Query(max_length=100, description=f"Some of {', '.join(sums.GROUPS)}.")] = "day",
    user_id: UUID | None = None,
    agent_key: Annotated[str | None, Query(max_length=100, pattern=STORABLE)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
) -> UsagePage:
    """Sum up what was used.

    Members see their own, admins the tenant's. Days are in UTC; the amounts are exact, so the sums of any grouping are
    equal to the last digit.
    """
    selection = Selection(Period.of(first, after), user_id=readable_by(actor, user_id), agent_key=agent_key)
    groups = sums.parse_groups(group_by)
    return await sums.page(session, actor.tenant_id, selection, groups, limit=limit, cursor=cursor)


@router.get("/usage/entries")
async def list_usage_entries(
    actor: Reader,
    session: TenantSession,
    query: Paging,
    first: FirstDay = None,
    after: DayAfter = None,
    run_id: UUID | None = None,
) -> UsageEntryPage:
    """List the ledger's entries, oldest first.

    Each call to the provider has one for every kind that it used, and for every picture. An entry never changes. Of a
    run it lists all, unless days are named.
    """
    whole_run = run_id is not None and first is None and after is None
    period = None if whole_run else Period.of(first, after)
    selection = Selection(period, user_id=readable_by(actor, None), run_id=run_id)
    rows, cursor = await entries(session, selection, query)
    return UsageEntryPage(data=[UsageEntryView.of(row) for row in rows], next_cursor=cursor)


@router.get("/limits")
async def get_limits(
    actor: Annotated[Actor, may(Permission.READ_LIMITS)], session: TenantSession, settings: CurrentSettings
) -> LimitsView:
    """See the limits of the tenant's plan, of an upload and of a run.

    `data` holds the plan's: those of the whole tenant and those of each person, with what the tenant and the caller
    have used; `reserved` is held by runs that have not ended.
    """
    plan = await counters.read_plan(session, actor)
    standing = await counters.look(session, plan, actor.tenant_id, actor.user_id)
    return LimitsView.of(settings, plan.name, standing.states)
