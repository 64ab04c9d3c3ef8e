"""What a run will probably cost, before it is started."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.agents._shared.registry import LoadedAgent, Registry, image_options
from app.agents._shared.tools import IMAGE_TOOL
from app.attachments import service as attachments
from app.conversations import service as conversations
from app.conversations.models import Conversation, Message
from app.db import now
from app.identity.service import Actor
from app.identity.sharing import require_own
from app.runs.schemas import DEFAULT_AGENT, NewRun
from app.runs.validation import check_images, check_options
from app.settings import Settings
from app.usage import pictures
from app.usage.estimates import LIKELY_OUTPUT_TOKENS, LIKELY_OUTPUT_TOKENS_DRAWING, CallEstimate
from app.usage.kinds import Basis, Kind, Quantity
from app.usage.ledger import Cost
from app.usage.money import to_usd
from app.usage.prices import Prices
from app.usage.schemas import EstimatedItem, RunEstimate


@dataclass(frozen=True)
class Expected:
    """The quantities of a run: those that are likely, and those that are to be reserved; `published` names kinds."""

    likely: Sequence[Quantity]
    reserved: Sequence[Quantity]
    published: frozenset[Kind]


async def estimate(
    session: AsyncSession, settings: Settings, registry: Registry, prices: Prices, actor: Actor, request: NewRun
) -> RunEstimate:
    """Nothing is started or counted. Refuses what a start would refuse, but for its limits."""
    conversation = None
    if request.conversation_id is not None:
        conversation = await conversations.get(session, actor, request.conversation_id)
        require_own(actor, conversation.user_id)
    agent_key = request.agent_key or (conversation.agent_key if conversation else DEFAULT_AGENT)
    check_options(settings, registry, agent_key, request)
    await check_images(session, actor, request)
    agent = registry.specs[agent_key]
    draws = IMAGE_TOOL in agent.spec.tool_keys
    expected = await expect(session, settings, prices, actor, agent, request, conversation, draws=draws)
    moment = now()
    likely = prices.price(expected.likely, at=moment)
    reserved = Cost.of(prices.price(expected.reserved, at=moment))
    return RunEstimate(
        currency="USD",
        cost_usd=_total(Cost.of(likely)),
        reserved_usd=_total(reserved),
        items=[
            EstimatedItem(
                kind=one.of.kind,
                model=one.of.model,
                quantity=one.of.quantity,
                cost_usd=to_usd(one.cost_nano),
                basis="published" if one.of.kind in expected.published else "assumed",
            )
            for one in likely
        ],
    )


async def expect(
    session: AsyncSession,
    settings: Settings,
    prices: Prices,
    actor: Actor,
    agent: LoadedAgent,
    request: NewRun,
    conversation: Conversation | None,
    *,
    draws: bool,
) -> Expected:
    """One picture where the agent `draws`; two calls where it may hand over. Nothing is taken as cached."""
    history = await _history_characters(session, conversation) if conversation is not None else 0
    characters = len(agent.prompt or "") + history + len(request.input)
    options = image_options(settings, agent, request.options.image) if draws else {}
    image_model = str(options.get("model") or prices.default_image_model) if draws else None
    call = CallEstimate(agent.model, image_model, characters, await _given_tokens(session, actor, request))
    output = LIKELY_OUTPUT_TOKENS_DRAWING if draws else LIKELY_OUTPUT_TOKENS
    published = image_model is not None and pictures.is_published(
        image_model, quality=options.get("quality"), size=options.get("size")
    )
    return Expected(
        likely=[*call.input(), call.output(output), *call.picture(options)],
        reserved=call.reserved(options, calls=2 if agent.spec.handoff_keys else 1),
        published=frozenset({Kind.IMAGE_OUTPUT} if published else ()),
    )


async def _history_characters(session: AsyncSession, conversation: Conversation) -> int:
    """As much of the conversation as is sent along."""
    newest = select(func.length(Message.text).label("characters")).where(Message.conversation_id == conversation.id)
    limited = newest.order_by(Message.id.desc()).limit(conversations.HISTORY_MESSAGES).subquery()
    found = await session.scalar(select(func.coalesce(func.sum(limited.c.characters), 0))) or 0
    return min(int(found), conversations.HISTORY_CHARACTERS)


async def _given_tokens(session: AsyncSession, actor: Actor, request: NewRun) -> int:
    wanted = [*request.attachments, *filter(None, (request.edit,))]
    rows = await attachments.own_of_ids(session, actor, wanted) if wanted else {}
    return sum(pictures.input_tokens(rows[one].width or 0, rows[one].height or 0) for one in wanted)


def _total(cost: Cost) -> str | None:
    """None where a part of it has no price."""
    return None if cost.basis == Basis.UNPRICED else to_usd(cost.nano)
