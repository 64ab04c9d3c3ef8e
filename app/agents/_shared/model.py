"""The model as an agent of ours calls it: the SDK's, with pictures taken out of the stream before anyone keeps them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from agents.models.openai_responses import OpenAIResponsesModel
from openai import AsyncOpenAI
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


@dataclass(frozen=True)
class WirePartial:
    """A preview as it came: base64 text, not yet decoded."""

    tool_call_id: str
    index: int
    base64: str


@dataclass(frozen=True)
class WirePicture:
    """A final picture as it came; `options` are those the provider says it used."""

    tool_call_id: str
    base64: str
    revised_prompt: str | None
    options: dict[str, Any]


class Watch(Protocol):
    """Who wants to know of a turn's calls; pictures are handed over once each."""

    async def calling(self) -> None: ...
    async def named(self, response_id: str) -> None: ...
    def preview(self, partial: WirePartial) -> None: ...
    def picture(self, picture: WirePicture) -> None: ...
    def completed(self, response: Response) -> None: ...


class UpstreamEnded(Exception):
    """The provider ended a response without completing it. `code` is the provider's or ours."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DivertingModel(OpenAIResponsesModel):
    """Insists on `response.completed`; yields events whose base64 is gone."""

    def __init__(self, name: str, client: AsyncOpenAI, watch: Watch) -> None:
        super().__init__(model=name, openai_client=client)
        self._watch = watch
        self._seen: set[tuple[str, str]] = set()

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[ResponseStreamEvent]:
        await self._watch.calling()
        completed = False
        async for event in super().stream_response(*args, **kwargs):
            if isinstance(event, ResponseCreatedEvent):
                await self._watch.named(event.response.id)
            elif isinstance(event, ResponseImageGenCallPartialImageEvent):
                self._divert_partial(event)
            elif isinstance(event, ResponseOutputItemDoneEvent):
                self._divert_item(event.item)
            elif isinstance(event, ResponseCompletedEvent):
                self._divert_output(event.response)
                _end_the_turn(event.response)
                self._watch.completed(event.response)
                completed = True
            elif isinstance(event, ResponseFailedEvent | ResponseIncompleteEvent):
                self._divert_output(event.response)
                raise _ended(event.response)
            yield event
        if not completed:
            raise UpstreamEnded("upstream_disconnected", "The provider's stream ended without a final event.")

    def _divert_partial(self, event: ResponseImageGenCallPartialImageEvent) -> None:
        partial = WirePartial(event.item_id, event.partial_image_index, event.partial_image_b64)
        event.partial_image_b64 = ""
        self._watch.preview(partial)

    def _divert_output(self, response: Response) -> None:
        for item in response.output:
            self._divert_item(item)

    def _divert_item(self, item: object) -> None:
        if not isinstance(item, ImageGenerationCall) or not item.result:
            return
        base64, item.result = item.result, None
        # The same picture comes again in response.completed; other bytes there make good what was cut off before.
        mark = (item.id, sha256(base64.encode()).hexdigest())
        if mark in self._seen:
            return
        self._seen.add(mark)
        extra = item.model_dump(exclude={"id", "result", "status", "type"}, exclude_none=True)
        revised_prompt = extra.pop("revised_prompt", None)
        self._watch.picture(WirePicture(item.id, base64, revised_prompt, extra))


def _end_the_turn(response: Response) -> None:
    """A picture without a word ends the turn, too: the SDK would ask, and pay, once more to get a message."""
    if any(item.type in ("message", "function_call") for item in response.output):
        return
    silence = ResponseOutputText(type="output_text", text="", annotations=[])
    response.output.append(
        ResponseOutputMessage(
            id=f"msg_{response.id}", type="message", role="assistant", status="completed", content=[silence]
        )
    )


def _ended(response: Response) -> UpstreamEnded:
    if response.error is not None:
        return UpstreamEnded(response.error.code, response.error.message)
    reason = response.incomplete_details.reason if response.incomplete_details else None
    return UpstreamEnded("upstream_incomplete", f"The answer was cut short: {reason or 'no reason given'}.")
