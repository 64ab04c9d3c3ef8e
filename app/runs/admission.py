"""Whether a run may start: the limits of its tenant's plan, judged under one lock, and what is reserved for it."""

from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from app.agents._shared.registry import LoadedAgent, Registry
from app.agents._shared.tools import IMAGE_TOOL, does_more_than_draw
from app.broker import Broker
from app.conversations.models import Conversation
from app.db import now
from app.identity.service import Actor
from app.runs.estimates import expect
from app.runs.schemas import NewRun
from app.settings import Settings
from app.usage import counters
from app.usage.kinds import Basis
from app.usage.ledger import Cost
from app.usage.limits import Limit, LimitState, Scope, is_limited, judge
from app.usage.models import Plan
from app.usage.prices import Prices


@dataclass(frozen=True)
class Starting:
    """Who starts a run, in which transaction, and what is at hand for it; `follows` is set where its events go out."""

    session: AsyncSession
    broker: Broker
    settings: Settings
    registry: Registry
    prices: Prices
    actor: Actor
    follows: bool = False


@dataclass(frozen=True)
class Admission:
    """What a run may draw and spend, None where the plan has no such limit, and the tools that it goes without."""

    reserved_images: int | None = None
    reserved_nano: int | None = None
    without: list[str] = field(default_factory=list[str])


async def admit(
    starting: Starting, plan: Plan, agent: LoadedAgent, request: NewRun, conversation: Conversation | None
) -> Admission:
    """Raises LimitExceeded or BudgetExceeded; then the transaction must end without a commit."""
    session, actor = starting.session, starting.actor
    if not is_limited(plan):
        return Admission()
    draws = IMAGE_TOOL in agent.spec.tool_keys
    wanted: dict[Limit, int | None] = {Limit.RUNS_PER_MINUTE: 1, Limit.RUNS_AT_ONCE: 1}
    # Before the lock, which others wait for.
    if _limits(plan, Limit.SPEND_PER_MONTH):
        wanted[Limit.SPEND_PER_MONTH] = await _cost(starting, agent, request, conversation, draws=draws)
    with_bytes = draws and plan.stored_bytes is not None
    standing = await counters.lock(session, plan, actor.tenant_id, actor.user_id, takes_run=True, with_bytes=with_bytes)
    without = [IMAGE_TOOL] if draws and _goes_without(standing.states, agent, request) else []
    draws = draws and not without
    if without and Limit.SPEND_PER_MONTH in wanted:
        wanted[Limit.SPEND_PER_MONTH] = await _cost(starting, agent, request, conversation, draws=False)
    if starting.follows:
        wanted[Limit.STREAMS_AT_ONCE] = 1
    if draws:
        wanted |= {Limit.IMAGES_PER_DAY: 1, Limit.STORED_BYTES: 1}
    standing.tell_rate(plan, taken=False)
    judge(standing.states, wanted, standing.at)
    standing.tell_rate(plan, taken=True)
    counts_images = _limits(plan, Limit.IMAGES_PER_DAY) or plan.stored_bytes is not None
    return Admission(
        reserved_images=int(draws) if counts_images else None,
        reserved_nano=wanted.get(Limit.SPEND_PER_MONTH),
        without=without,
    )


def _limits(plan: Plan, limit: Limit) -> bool:
    return any(limit.of(plan, scope) is not None for scope in Scope)


def _goes_without(states: list[LimitState], agent: LoadedAgent, request: NewRun) -> bool:
    """Whether no image may be drawn, and the agent can answer nonetheless."""
    exhausted = any(state.limit == Limit.IMAGES_PER_DAY and state.refuses(1) for state in states)
    forced = request.edits or IMAGE_TOOL in (request.forced_tool, agent.spec.tool_choice)
    return exhausted and not forced and does_more_than_draw(agent.spec)


async def _cost(
    starting: Starting, agent: LoadedAgent, request: NewRun, conversation: Conversation | None, *, draws: bool
) -> int | None:
    """What is to be reserved, in nano-dollars; None where a part of it has no price."""
    expected = await expect(
        starting.session, starting.settings, starting.prices, starting.actor, agent, request, conversation, draws=draws
    )
    cost = Cost.of(starting.prices.price(expected.reserved, at=now()))
    return None if cost.basis == Basis.UNPRICED else cost.nano
