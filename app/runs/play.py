"""One turn with the model: the ways to ask it, tried in order, and its answer as it comes."""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import openai
from agents import (
    Agent,
    ModelRefusalError,
    RawResponsesStreamEvent,
    RunConfig,
    RunErrorHandlerInput,
    Runner,
    TResponseInputItem,
)

from app.agents._shared.build import build_agent
from app.agents._shared.model import DivertingModel
from app.agents._shared.registry import LoadedAgent, image_options, runs_in_background
from app.db import patient
from app.runs.context import Context, Way, is_forgotten, load, mask_option, ways
from app.runs.inputs import Sender
from app.runs.models import Run
from app.runs.told import Teller
from app.runs.translate import Translator
from app.runs.turn import Turn, Workshop


async def play(shop: Workshop, run: Run, turn: Turn, teller: Teller, translator: Translator) -> None:
    """Ask the model and tell what it answers, to the end of the turn; raises what the SDKs raise."""
    stores = shop.registry.specs[run.agent_key].spec.store
    context = await _load(shop, run, stores=stores, asked=turn.accepted)
    turn.follow_request(context)
    sender = Sender(shop.store, shop.client)
    mask = await mask_option(sender, context)
    refused: openai.APIStatusError | None = None
    async for way in ways(sender, context, stores=stores, asked=turn.accepted):
        try:
            await _stream(shop, run, turn, teller, translator, way, mask)
        except openai.APIStatusError as error:
            # Once a response was begun, asking another way would pay twice.
            if turn.accepted or not is_forgotten(error):
                raise
            refused = error
        else:
            return
    if refused is not None:
        raise refused


@patient
async def _load(shop: Workshop, run: Run, *, stores: bool, asked: bool) -> Context:
    async with shop.database.tenant(run.tenant_id) as session:
        return await load(session, run, stores=stores, asked=asked)


async def _stream(
    shop: Workshop,
    run: Run,
    turn: Turn,
    teller: Teller,
    translator: Translator,
    way: Way,
    mask: Mapping[str, Any],
) -> None:
    loaded = shop.registry.specs[run.calling_agent or run.agent_key]
    streamed = Runner.run_streamed(
        _build(shop, run, turn, loaded, mask),
        cast(list[TResponseInputItem], way.items),
        # An answer that is gone on with counts once more.
        max_turns=max(loaded.spec.max_turns - run.calling_turn + turn.accepted, 1),
        previous_response_id=way.previous_response_id,
        auto_previous_response_id=loaded.spec.store,
        run_config=RunConfig(tracing_disabled=True),
        # A refusal is an answer: its words are what the person reads.
        error_handlers={"model_refusal": _take_refusal},
    )
    try:
        async for event in streamed.stream_events():
            if isinstance(event, RawResponsesStreamEvent):
                teller.follow(event.data)
            translator.handle(event)
    finally:
        streamed.cancel()


def _build(shop: Workshop, run: Run, turn: Turn, loaded: LoadedAgent, mask: Mapping[str, Any]) -> Agent[Any]:
    def options(agent: LoadedAgent) -> dict[str, Any]:
        return image_options(shop.settings, agent, run.options["image"])

    background = partial(runs_in_background, shop.settings)
    return build_agent(
        shop.registry,
        loaded.spec.key,
        model_for=lambda agent: DivertingModel(agent, shop.client, turn, background=background(agent)),
        image_options=lambda agent: {**options(agent), **mask},
        runs_in_background=background,
        tool_choice=run.options.get("tool_choice") if run.calling_turn <= 1 else None,
        safety_identifier=hashlib.sha256(f"{run.tenant_id}:{run.user_id}".encode()).hexdigest(),
    )


def _take_refusal(refused: RunErrorHandlerInput[Any]) -> str:
    error = refused.error
    return error.refusal if isinstance(error, ModelRefusalError) else str(error)
