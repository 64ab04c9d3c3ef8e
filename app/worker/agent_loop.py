"""One turn of an agent: the input strategies tried in order, and the model's answer as it comes."""

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from agents import (
    Agent,
    ModelBehaviorError,
    ModelRefusalError,
    RunConfig,
    RunErrorHandlerInput,
    Runner,
    ToolErrorFormatterArgs,
    TResponseInputItem,
)
from agents.models.interface import Model

from app.agents._shared.build import build_agent
from app.agents._shared.registry import LoadedAgent, runs_in_background
from app.agents._shared.specs import ToolContext
from app.errors import NotFound
from app.provider.errors import ProviderForgot, ProviderOverfull
from app.provider.observers import ModelUse
from app.runs.models import Run
from app.usage.pictures import input_tokens
from app.worker import model_input
from app.worker.calls import ProviderCalls
from app.worker.context import WorkerContext
from app.worker.image_inputs import ImageInputs
from app.worker.image_options import ImageOptions
from app.worker.images import RunImages
from app.worker.model_input import InputStrategy, RunInput
from app.worker.translator import Translator

log = logging.getLogger(__name__)

# In so many turns the model is told that the agent lacks a tool; the next such call ends the run.
MAX_UNKNOWN_TURNS = 1


class AgentLoop:
    """Runs the agent of one attempt and emits what it answers."""

    def __init__(
        self,
        ctx: WorkerContext,
        run: Run,
        request: RunInput | Exception,
        calls: ProviderCalls,
        images: RunImages,
        options: ImageOptions,
        translator: Translator,
    ) -> None:
        self._ctx = ctx
        self._run = run
        self._request = request
        self._calls = calls
        self._images = images
        self._options = options
        self._translator = translator
        # The turns in which the model called a tool that the agent does not have.
        self._unknown_in: set[int] = set()

    async def run(self) -> None:
        """To the end of the turn; raises what the SDKs raise."""
        request = self._request
        if isinstance(request, Exception):
            raise request
        if request.missing:
            raise NotFound("attachment")
        rows = self._images.rows
        rows.prompt, rows.parent_object_id = request.message.text, request.parent_object_id
        self._calls.book.given_tokens = sum(
            input_tokens(row.width or 0, row.height or 0) for row in (*request.images, request.edit) if row is not None
        )
        try:
            await self._try_strategies(request, ImageInputs(self._ctx.store, self._calls.upload_image))
        except ProviderOverfull:
            if self._calls.already_sent:
                raise
            log.warning("run.request_too_large")
            await self._try_strategies(request, ImageInputs(self._ctx.store, self._calls.upload_image, reduced=True))

    async def _try_strategies(self, request: RunInput, inputs: ImageInputs) -> None:
        already_sent = self._calls.already_sent
        stores = self._ctx.registry.specs[self._run.agent_key].spec.store
        mask = await model_input.mask_option(inputs, request)
        forgot: ProviderForgot | None = None
        async for strategy in model_input.strategies(inputs, request, stores=stores, already_sent=already_sent):
            try:
                await self._stream(strategy, mask)
            except ProviderForgot as error:
                # Once a response was created, another strategy would pay twice.
                if self._calls.already_sent:
                    raise
                forgot = error
            else:
                return
        if forgot is not None:
            raise forgot

    async def _stream(self, strategy: InputStrategy, mask: Mapping[str, Any]) -> None:
        run = self._run
        loaded = self._ctx.registry.specs[run.calling_agent or run.agent_key]
        streamed = Runner.run_streamed(
            self._build(loaded, mask),
            cast(list[TResponseInputItem], strategy.items),
            context=ToolContext(
                tenant_id=run.tenant_id, user_id=run.user_id, run_id=run.id, conversation_id=run.conversation_id
            ),
            # A resumed response counts as one turn again.
            max_turns=max(loaded.spec.max_turns - run.calling_turn + self._calls.already_sent, 1),
            previous_response_id=strategy.previous_response_id,
            auto_previous_response_id=loaded.spec.store,
            run_config=RunConfig(
                tracing_disabled=True,
                tool_not_found_behavior="return_error_to_model",
                tool_error_formatter=self._unknown_tool,
            ),
            # A refusal is an answer: the user reads its text.
            error_handlers={"model_refusal": _refusal_text},
        )
        try:
            async for event in streamed.stream_events():
                self._translator.handle(event)
                # Each answer to such a call is one more paid request.
                if len(self._unknown_in) > MAX_UNKNOWN_TURNS:
                    raise ModelBehaviorError("The model repeats calls of unknown tools.")
        finally:
            streamed.cancel()

    def _unknown_tool(self, error: ToolErrorFormatterArgs[Any]) -> str | None:
        """What the model reads in place of the tool's output; None is the SDK's own sentence."""
        if error.kind != "tool_not_found":
            return None
        self._translator.unknown_calls.add(error.call_id)
        self._unknown_in.add(self._calls.turn)
        log.warning("tool.unknown", extra={"tool": error.tool_name})
        return f"There is no tool {error.tool_name!r}: answer without it."

    def _build(self, loaded: LoadedAgent, mask: Mapping[str, Any]) -> Agent[Any]:
        run = self._run
        return build_agent(
            self._ctx.registry,
            loaded.spec.key,
            model_for=self._model_for,
            image_options=lambda agent: {**self._options(agent.spec.key), **mask},
            runs_in_background=partial(runs_in_background, self._ctx.settings),
            tool_choice=run.options.tool_choice if run.calling_turn <= 1 else None,
            without=run.without,
            safety_identifier=hashlib.sha256(f"{run.tenant_id}:{run.user_id}".encode()).hexdigest(),
        )

    def _model_for(self, loaded: LoadedAgent) -> Model:
        background = runs_in_background(self._ctx.settings, loaded)
        use = ModelUse(
            loaded.spec.key, self._calls, self._calls.book, self._images, self._translator.on_event, background
        )
        return self._ctx.provider.model(loaded.model, use)


def _refusal_text(refused: RunErrorHandlerInput[Any]) -> str:
    error = refused.error
    return error.refusal if isinstance(error, ModelRefusalError) else str(error)
