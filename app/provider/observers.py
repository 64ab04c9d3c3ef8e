"""Who follows the calls of a run to the provider, and what they are given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from openai.types.responses import ResponseStreamEvent

from app.provider.image_bytes import ImageBytes
from app.provider.usage import ResponseReport


@dataclass(frozen=True)
class PartialImage:
    """A preview as the provider sent it."""

    agent_key: str
    tool_call_id: str
    index: int
    content: ImageBytes


@dataclass(frozen=True)
class GeneratedImage:
    """A final image as the provider sent it; `options` are those that the provider reports."""

    agent_key: str
    tool_call_id: str
    content: ImageBytes
    revised_prompt: str | None
    options: dict[str, Any]


class CallObserver(Protocol):
    """Is told of a request before it is sent, and of its response as soon as it is named.

    `take_resumed` returns, once, the id of a response that was paid for before, to resume instead of a first request.
    `characters` are those of the request's instructions and input.
    """

    def take_resumed(self) -> str | None: ...
    async def on_request(self, agent_key: str, *, background: bool, characters: int) -> None: ...
    async def on_response_created(self, response_id: str) -> None: ...


class ImageSink(Protocol):
    """Receives the images of a run, each once."""

    def on_partial(self, partial: PartialImage) -> None: ...
    def on_image(self, image: GeneratedImage) -> None: ...


class CallMeter(ImageSink, Protocol):
    """Counts what came of the present call. It costs nothing before `on_sent`, nor after `on_refused`.

    `on_response_ended`: the provider has sent its last event, with what that reports, or None for an error.
    """

    def on_delta(self, characters: int) -> None: ...
    def on_sent(self) -> None: ...
    def on_refused(self) -> None: ...
    def on_response_ended(self, report: ResponseReport | None) -> None: ...


@dataclass(frozen=True)
class ModelUse:
    """One agent's use of a model in one run, and who follows it; `on_event` gets each event, deltas included."""

    agent_key: str
    observer: CallObserver
    meter: CallMeter
    images: ImageSink
    on_event: Callable[[ResponseStreamEvent], None]
    background: bool
