"""The model as an agent of ours calls it: the SDK's, with pictures taken out of the stream before anyone keeps them."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol, cast

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

from app.agents._shared.registry import LoadedAgent

TAKE_UP_TRIES = 5
# With the pauses between them a minute: as long as a network may be away before a paid answer is given up.
CONNECT_TRIES = 16
MOST_PAUSE_SECONDS = 5.0
RETRY_AFTER_MOST_SECONDS = 20


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
    """Who wants to know of a turn's calls; pictures are handed over once each.

    `resumes` names, once, a response that was paid for before, to go on with in place of a first call.
    """

    def resumes(self) -> str | None: ...
    async def calling(self, agent_key: str, *, background: bool) -> None: ...
    async def named(self, response_id: str) -> None: ...
    def preview(self, partial: WirePartial) -> None: ...
    def picture(self, picture: WirePicture) -> None: ...
    def ended(self, response: Response) -> None: ...


class UpstreamEnded(Exception):
    """The provider ended a response without completing it. `code` is the provider's or ours."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DivertingModel(OpenAIResponsesModel):
    """Insists on `response.completed`; yields events whose base64 is gone.

    With `background` the provider goes on when a stream breaks, and the stream is taken up again where it broke.
    """

    def __init__(self, loaded: LoadedAgent, client: AsyncOpenAI, watch: Watch, *, background: bool) -> None:
        super().__init__(model=loaded.model, openai_client=client)
        self._agent_key = loaded.spec.key
        self._provider = client
        self._watch = watch
        self._background = background
        self._seen: set[tuple[str, str]] = set()

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncGenerator[ResponseStreamEvent]:
        resumed = self._watch.resumes()
        place = Place(resumed)
        if resumed is None:
            await self._watch.calling(self._agent_key, background=self._background)
        broken: Exception | None = None
        while True:
            # Asked for once; whatever happens to the stream after that, the response is only looked at again.
            asks = resumed is None and broken is None
            source = self._ask(*args, **kwargs) if asks else self._retrieve(place)
            try:
                async with aclosing(source):
                    async for event in source:
                        if place.passes(event):
                            await self._divert(event)
                            yield event
                if place.completed:
                    return
                broken = UpstreamEnded("upstream_disconnected", "The provider's stream ended without a final event.")
            except (openai.APIConnectionError, openai.InternalServerError, json.JSONDecodeError) as error:
                broken = error
            pause = place.pause_after(broken) if self._background else None
            if pause is None:
                raise broken
            await asyncio.sleep(pause)

    async def _ask(self, *args: Any, **kwargs: Any) -> AsyncGenerator[ResponseStreamEvent]:
        """A refusal for being too busy says that nothing was accepted: it is waited out once, where it is short."""
        try:
            async for event in super().stream_response(*args, **kwargs):
                yield event
            return
        except openai.RateLimitError as error:
            seconds = _retry_after(error)
            if seconds is None:
                raise
        await asyncio.sleep(seconds)
        async for event in super().stream_response(*args, **kwargs):
            yield event

    async def _retrieve(self, place: "Place") -> AsyncGenerator[ResponseStreamEvent]:
        response_id = place.response_id or ""
        after = omit if place.sequence_number is None else place.sequence_number
        try:
            stream = await self._provider.responses.retrieve(response_id, stream=True, starting_after=after)
        except (openai.RateLimitError, openai.ConflictError) as error:
            # Looking again costs nothing: what is busy now is asked later, like what does not answer.
            raise openai.APIConnectionError(request=error.request) from error
        except openai.NotFoundError:
            raise UpstreamEnded("upstream_outcome_unknown", "The provider no longer has the response.") from None
        async with stream:
            async for event in stream:
                yield event

    async def _divert(self, event: ResponseStreamEvent) -> None:
        if isinstance(event, ResponseCreatedEvent):
            await self._watch.named(event.response.id)
        elif isinstance(event, ResponseImageGenCallPartialImageEvent):
            self._divert_partial(event)
        elif isinstance(event, ResponseOutputItemDoneEvent):
            self._divert_item(event.item)
        elif isinstance(event, ResponseCompletedEvent):
            self._divert_output(event.response)
            _end_the_turn(event.response)
            self._watch.ended(event.response)
        elif isinstance(event, ResponseFailedEvent | ResponseIncompleteEvent):
            self._divert_output(event.response)
            self._watch.ended(event.response)
            raise _ended(event.response)

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
        # Postgres keeps this one character out of a text.
        revised_prompt = (extra.pop("revised_prompt", None) or "").replace("\0", "") or None
        self._watch.picture(WirePicture(item.id, base64, revised_prompt, extra))


class Place:
    """How far a response's stream was read."""

    def __init__(self, response_id: str | None) -> None:
        self.response_id = response_id
        self.sequence_number: int | None = None
        self.completed = False
        self._breaks = 0
        self._read = 0

    def passes(self, event: ResponseStreamEvent) -> bool:
        """Note the event; False for one that was read before the stream was taken up again."""
        number = cast(int | None, getattr(event, "sequence_number", None))
        if self._breaks and number is not None and self.sequence_number is not None and number <= self.sequence_number:
            return False
        self._breaks = 0
        self._read += 1
        self.sequence_number = self.sequence_number if number is None else number
        if isinstance(event, ResponseCreatedEvent):
            self.response_id = event.response.id
        self.completed = self.completed or isinstance(event, ResponseCompletedEvent)
        return True

    def pause_after(self, broken: Exception) -> float | None:
        """Seconds to wait before the stream is taken up again; None where that is no use."""
        self._breaks += 1
        match broken:
            case openai.APITimeoutError():
                # Silence has lasted long enough by itself: what is silent twice is given up.
                allowed = 1
            case openai.APIConnectionError() | openai.InternalServerError():
                allowed = CONNECT_TRIES
            case _:
                allowed = TAKE_UP_TRIES
        lost = self.response_id is None or (self._read and self.sequence_number is None)
        if lost or self._breaks > allowed:
            return None
        return min(0.1 * 2**self._breaks, MOST_PAUSE_SECONDS)


def _retry_after(error: openai.RateLimitError) -> float | None:
    """Seconds, where waiting may help: not for a spent quota, and not for longer than a person waits."""
    given = error.response.headers.get("retry-after", "")
    if error.code == "insufficient_quota" or not given.isdigit() or int(given) > RETRY_AFTER_MOST_SECONDS:
        return None
    return float(given)


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
