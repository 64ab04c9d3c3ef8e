"""The model that our agents call: the SDK's, with images handed over before anything keeps them."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from weakref import WeakValueDictionary

import openai
from agents.models.openai_responses import OpenAIResponsesModel
from openai import AsyncOpenAI, omit
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseCreatedEvent,
    ResponseFailedEvent,
    ResponseImageGenCallPartialImageEvent,
    ResponseIncompleteEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseStreamEvent,
)
from openai.types.responses.response_output_item import ImageGenerationCall

from app.provider import errors
from app.provider.cursor import StreamCursor
from app.provider.errors import ProviderError, ProviderUnreachable, ProviderUnreadable
from app.provider.image_bytes import ImageBytes
from app.provider.observers import GeneratedImage, ModelUse, PartialImage
from app.provider.request_size import characters_of
from app.provider.texts import storable
from app.provider.usage import report_of
from app.provider.wire import image_of

RETRY_AFTER_MAX_SECONDS = 20
MAX_PROMPT_CHARACTERS = 8_000


class ImageExtractingModel(OpenAIResponsesModel):
    """Insists on `response.completed`, and takes images out of the events. Raises ProviderError.

    The SDK gets no deltas: it does nothing with them, and its queue costs a quarter of their way. In background mode
    the provider continues when a stream breaks, and the stream is resumed where it broke.
    """

    def __init__(self, model: str, client: AsyncOpenAI, use: ModelUse) -> None:
        super().__init__(model=model, openai_client=client)
        self._openai = client
        self._use = use
        # Weak: an image is freed as soon as it is stored.
        self._last: WeakValueDictionary[str, ImageBytes] = WeakValueDictionary()
        self._extracted: set[str] = set()

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncGenerator[ResponseStreamEvent]:
        resumed = self._use.observer.take_resumed()
        cursor = StreamCursor(resumed)
        if resumed is None:
            await self._use.observer.on_request(
                self._use.agent_key, background=self._use.background, characters=characters_of(*args, **kwargs)
            )
        # One request at most; whatever happens to its stream, the response is only retrieved after that.
        source = self._request(*args, **kwargs) if resumed is None else self._retrieve(cursor)
        while True:
            try:
                async with aclosing(source):
                    async for event in source:
                        if not cursor.accept(event):
                            continue
                        if event.type.endswith(".delta"):
                            self._use.meter.on_delta(len(getattr(event, "delta", "")))
                            self._use.on_event(event)
                            continue
                        await self._extract(event)
                        self._use.on_event(event)
                        yield event
                if cursor.completed:
                    return
                broken = errors.stream_cut_off(self.model)
            except (openai.APIError, json.JSONDecodeError) as error:
                self._tell_end(error, cursor)
                broken = errors.from_openai(error, self.model)
                if not isinstance(broken, ProviderUnreachable | ProviderUnreadable):
                    raise broken from error
            pause = cursor.pause_after(broken) if self._use.background else None
            if pause is None:
                raise broken
            await asyncio.sleep(pause)
            source = self._retrieve(cursor)

    async def _request(self, *args: Any, **kwargs: Any) -> AsyncGenerator[ResponseStreamEvent]:
        """A refusal because the provider is busy means that nothing was accepted: wait for a short while, once."""
        self._use.meter.on_sent()
        try:
            async for event in super().stream_response(*args, **kwargs):
                yield event
            return
        except openai.RateLimitError as error:
            self._use.meter.on_refused()
            seconds = _retry_after(error)
            if seconds is None:
                raise
        await asyncio.sleep(seconds)
        self._use.meter.on_sent()
        async for event in super().stream_response(*args, **kwargs):
            yield event

    async def _retrieve(self, cursor: StreamCursor) -> AsyncGenerator[ResponseStreamEvent]:
        after = omit if cursor.sequence_number is None else cursor.sequence_number
        try:
            stream = await self._openai.responses.retrieve(cursor.response_id or "", stream=True, starting_after=after)
        except (openai.RateLimitError, openai.ConflictError) as error:
            # A retrieval costs nothing, so it is repeated later, as after a lost connection.
            raise openai.APIConnectionError(request=error.request) from error
        except openai.NotFoundError:
            raise errors.unknown_outcome() from None
        async with stream:
            async for event in stream:
                yield event

    def _tell_end(self, error: Exception, cursor: StreamCursor) -> None:
        """Of a call that cost nothing because it was refused, and of a stream that ends with an error."""
        if cursor.response_id is None and errors.was_refused(error):
            self._use.meter.on_refused()
        elif errors.is_last_event(error):
            self._use.meter.on_response_ended(None)

    async def _extract(self, event: ResponseStreamEvent) -> None:
        match event:
            case ResponseCreatedEvent():
                await self._use.observer.on_response_created(event.response.id)
            case ResponseImageGenCallPartialImageEvent():
                content = image_of(event, event.partial_image_b64)
                event.partial_image_b64 = ""
                partial = PartialImage(self._use.agent_key, event.item_id, event.partial_image_index, content)
                self._use.meter.on_partial(partial)
                self._use.images.on_partial(partial)
            case ResponseOutputItemDoneEvent():
                self._extract_item(event.item)
            case ResponseCompletedEvent():
                self._extract_output(event.response)
                _end_turn(event.response)
            case ResponseFailedEvent() | ResponseIncompleteEvent():
                self._extract_output(event.response)
                raise _error_of(event.response, self.model)
            case _:
                pass

    def _extract_output(self, response: Response) -> None:
        for item in response.output:
            self._extract_item(item)
        self._use.meter.on_response_ended(report_of(response, self._extracted))

    def _extract_item(self, item: object) -> None:
        if not isinstance(item, ImageGenerationCall) or not item.result:
            return
        image = to_image(item, item.result, self._use.agent_key)
        item.result = None
        # The same image comes again in response.completed; other bytes there replace what was cut off before.
        last = self._last.get(item.id)
        if image.content.repeated and item.id in self._extracted:
            return
        if last is None or not last.equals(image.content):
            self._last[item.id] = image.content
            self._extracted.add(item.id)
            self._use.meter.on_image(image)
            self._use.images.on_image(image)


def to_image(item: ImageGenerationCall, result: str, agent_key: str) -> GeneratedImage:
    content = image_of(item, result)
    options = storable(item.model_dump(exclude={"id", "result", "status", "type"}, exclude_none=True))
    # An event holds no longer one.
    revised_prompt = (options.pop("revised_prompt", None) or "")[:MAX_PROMPT_CHARACTERS] or None
    return GeneratedImage(agent_key, item.id, content, revised_prompt, options)


def _retry_after(error: openai.RateLimitError) -> float | None:
    """Seconds to wait; None for a spent quota, and where the wait is longer than a user waits."""
    given = error.response.headers.get("retry-after", "")
    if error.code == "insufficient_quota" or not given.isdigit() or int(given) > RETRY_AFTER_MAX_SECONDS:
        return None
    return float(given)


def _end_turn(response: Response) -> None:
    """An image without text ends the turn, too: the SDK would send, and pay for, one more request to get a message."""
    if any(item.type in ("message", "function_call") for item in response.output):
        return
    empty = ResponseOutputText(type="output_text", text="", annotations=[])
    message = ResponseOutputMessage(
        id=f"msg_{response.id}", type="message", role="assistant", status="completed", content=[empty]
    )
    response.output.append(message)


def _error_of(response: Response, model: str) -> ProviderError:
    if response.error is not None:
        return errors.response_failed(response.error.code, response.error.message, model)
    reason = response.incomplete_details.reason if response.incomplete_details else None
    return errors.response_incomplete(reason, model)
