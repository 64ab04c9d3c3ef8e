"""What is used of a plan's limits: read by itself, or under the lock that makes an admission exact."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, Interval, Row, Select, Uuid, bindparam, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.compiled import CompiledStatement
from app.identity.models import Tenant
from app.identity.service import Actor
from app.request_context import current_request
from app.usage.limits import Limit, LimitState, Scope, Used, rate_headers, states, token_of
from app.usage.models import Plan, UsageCounter

TENANT = UUID(int=0)
"""The user whose counters are the tenant's."""

# A stream that its API process has not told of for longer is lost: less than three of its turns, and than 30 seconds.
STREAM_SILENCE = timedelta(seconds=25)

_TENANT, _USER = bindparam("tenant", type_=Uuid), bindparam("user", type_=Uuid)

# The tenant's row first, so that two who lock both wait for each other in one order. A run takes one of each bucket: a
# refusal undoes that with its transaction.
_LOCK = CompiledStatement[*tuple[Any, ...]](
    text("""
INSERT INTO usage_counters AS c (tenant_id, user_id, full_at) VALUES
  (:tenant, '00000000-0000-0000-0000-000000000000', clock_timestamp() + :tenant_token),
  (:tenant, :user, clock_timestamp() + :user_token)
ON CONFLICT (tenant_id, user_id) DO UPDATE SET full_at = coalesce(
  greatest(c.full_at, clock_timestamp()) + CASE WHEN c.user_id = :user THEN :user_token ELSE :tenant_token END,
  c.full_at)
RETURNING user_id, full_at, month, spent_nano, day, images, clock_timestamp() AS at
""").bindparams(_TENANT, _USER, bindparam("tenant_token", type_=Interval), bindparam("user_token", type_=Interval))
)

# In a statement after the lock, so that it sees what the last holder has committed. What a deleted run has asked for is
# held until it is settled; a stream of a run that has ended counts no more, wherever it is read from.
_OPEN = CompiledStatement[*tuple[Any, ...]](
    text("""
SELECT h.*, s.*, (CASE WHEN :with_bytes THEN
  (SELECT coalesce(sum(stored_bytes), 0) FROM attachments WHERE tenant_id = :tenant) ELSE 0 END)::bigint AS stored_bytes
FROM (
  SELECT count(run) AS runs, count(run) FILTER (WHERE user_id = :user) AS user_runs,
    coalesce(sum(reserved_images), 0)::bigint AS reserved_images,
    coalesce(sum(reserved_images) FILTER (WHERE user_id = :user), 0)::bigint AS user_reserved_images,
    coalesce(sum(reserved_nano), 0)::bigint AS reserved_nano,
    coalesce(sum(reserved_nano) FILTER (WHERE user_id = :user), 0)::bigint AS user_reserved_nano
  FROM (
    SELECT id AS run, user_id, reserved_images, reserved_nano
    FROM runs WHERE tenant_id = :tenant AND status IN ('queued', 'running')
    UNION ALL
    SELECT NULL, user_id, reserved_images, reserved_nano FROM provider_calls c
    WHERE tenant_id = :tenant AND state <> 'settled'
      AND NOT EXISTS (SELECT FROM runs r WHERE r.tenant_id = c.tenant_id AND r.id = c.run_id)
  ) held
) h, (
  SELECT count(*) AS streams, count(*) FILTER (WHERE s.user_id = :user) AS user_streams
  FROM streams s JOIN runs r ON r.tenant_id = s.tenant_id AND r.id = s.run_id AND r.status IN ('queued', 'running')
  WHERE s.tenant_id = :tenant AND s.seen_at > clock_timestamp() - :silence
) s
""").bindparams(_TENANT, _USER, bindparam("with_bytes", type_=Boolean), bindparam("silence", type_=Interval))
)


@dataclass(frozen=True)
class Standing:
    """Every limit of a plan as it stands `at` that time; `full_at` is of each bucket of runs, `tokens` taken of it."""

    states: list[LimitState]
    full_at: Mapping[Scope, datetime | None]
    tokens: Mapping[Scope, timedelta | None]
    at: datetime

    def tell_rate(self, plan: Plan, *, taken: bool) -> None:
        """As it is, or as it will be again if the transaction is not committed."""
        full_at = {
            scope: full and full - (timedelta() if taken else self.tokens.get(scope) or timedelta())
            for scope, full in self.full_at.items()
        }
        refused = any(state.limit == Limit.RUNS_PER_MINUTE and state.refuses(1) for state in self.states)
        current_request().headers.update(rate_headers(plan, full_at, self.at, refused=refused))


async def read_plan(session: AsyncSession, actor: Actor) -> Plan:
    """The tenant's."""
    return (await _PLAN.execute(session, {"tenant": actor.tenant_id})).scalar_one()


_PLAN = CompiledStatement[Plan](select(Plan).join(Tenant).where(Tenant.id == _TENANT), Plan)


def _plan_and_rate() -> Select[Plan, datetime | None, datetime | None, datetime]:
    tenant, user = aliased(UsageCounter), aliased(UsageCounter)
    return (
        select(Plan, tenant.full_at, user.full_at, func.clock_timestamp())
        .join(Tenant)
        .outerjoin(tenant, (tenant.tenant_id == Tenant.id) & (tenant.user_id == TENANT))
        .outerjoin(user, (user.tenant_id == Tenant.id) & (user.user_id == _USER))
        .where(Tenant.id == _TENANT)
    )


PLAN_AND_RATE = _plan_and_rate()
"""A row with what `tell_rate` takes: the plan, when the tenant's and the person's bucket is full, and the time.

`of_actor` is what it is given.
"""
_PLAN_AND_RATE = CompiledStatement(PLAN_AND_RATE, Plan, None, None, None)


def of_actor(actor: Actor) -> dict[str, UUID]:
    return {"tenant": actor.tenant_id, "user": actor.user_id}


def tell_rate(plan: Plan, of_tenant: datetime | None, of_user: datetime | None, at: datetime) -> None:
    """In the headers of the answer to the present request, whichever that will be."""
    current_request().headers.update(rate_headers(plan, {Scope.TENANT: of_tenant, Scope.USER: of_user}, at))


async def read_rate(session: AsyncSession, actor: Actor) -> None:
    """For an answer that was given before the plan was read."""
    tell_rate(*(await _PLAN_AND_RATE.execute(session, of_actor(actor))).one())


async def look(session: AsyncSession, plan: Plan, tenant_id: UUID, user_id: UUID) -> Standing:
    """As anybody may read it."""
    of = UsageCounter.user_id.in_((TENANT, user_id)) & (UsageCounter.tenant_id == tenant_id)
    rows = await session.execute(select(UsageCounter.__table__, func.clock_timestamp().label("at")).where(of))
    found = {row.user_id: row for row in rows}
    at = (
        next(iter(found.values())).at if found else (await session.execute(select(func.clock_timestamp()))).scalar_one()
    )
    return await _standing(session, plan, tenant_id, user_id, found, at, with_bytes=True)


async def lock(
    session: AsyncSession,
    plan: Plan,
    tenant_id: UUID,
    user_id: UUID,
    *,
    takes_run: bool = False,
    with_bytes: bool = False,
) -> Standing:
    """Until the transaction ends, nobody else of the tenant is admitted; `takes_run` starts one in both buckets.

    The states are those before that. Lock conversation and run before.
    """
    tokens = {scope: token_of(plan, scope) if takes_run else None for scope in Scope}
    given = {"tenant": tenant_id, "user": user_id}
    given |= {"tenant_token": tokens[Scope.TENANT], "user_token": tokens[Scope.USER]}
    rows = (await _LOCK.execute(session, given)).all()
    found = {row.user_id: row for row in rows}
    at = max(row.at for row in rows)
    return await _standing(session, plan, tenant_id, user_id, found, at, with_bytes=with_bytes, tokens=tokens)


async def _standing(
    session: AsyncSession,
    plan: Plan,
    tenant_id: UUID,
    user_id: UUID,
    counters: Mapping[UUID, Row[Any]],
    at: datetime,
    *,
    with_bytes: bool,
    tokens: Mapping[Scope, timedelta | None] | None = None,
) -> Standing:
    given = {"tenant": tenant_id, "user": user_id, "with_bytes": with_bytes, "silence": STREAM_SILENCE}
    row = (await _OPEN.execute(session, given)).one()
    used = {
        Scope.TENANT: Used(
            runs=row.runs,
            streams=row.streams,
            reserved_images=row.reserved_images,
            reserved_nano=row.reserved_nano,
            stored_bytes=row.stored_bytes,
        ),
        Scope.USER: Used(
            runs=row.user_runs,
            streams=row.user_streams,
            reserved_images=row.user_reserved_images,
            reserved_nano=row.user_reserved_nano,
        ),
    }
    full_at: dict[Scope, datetime | None] = dict.fromkeys(Scope)
    for scope, owner in ((Scope.TENANT, TENANT), (Scope.USER, user_id)):
        counter = counters.get(owner)
        if counter is not None:
            full_at[scope] = counter.full_at
            used[scope] = _with_counter(used[scope], counter, at, (tokens or {}).get(scope))
    return Standing(states(plan, used, at), full_at, tokens or {}, at)


def _with_counter(used: Used, counter: Row[Any], at: datetime, token: timedelta | None) -> Used:
    """What was used on an earlier day or in an earlier month counts no more; a later one, by a hair, is this one."""
    day = at.date()
    return replace(
        used,
        full_at=counter.full_at - token if counter.full_at and token else counter.full_at,
        images=counter.images if counter.day and counter.day >= day else 0,
        spent_nano=counter.spent_nano if counter.month and counter.month >= day.replace(day=1) else 0,
    )
