"""The options of images on the wire: a run's, an agent's, and those that an image was made with."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, ValidatorFunctionWrapHandler, WrapValidator, with_config
from typing_extensions import TypedDict

from app.images.option_types import MAX_MODEL_CHARACTERS

Background = Literal["auto", "opaque", "transparent"]
Format = Literal["png", "jpeg", "webp", "gif", "svg"]
Quality = Literal["low", "medium", "high", "xhigh", "max", "auto"]
Partials = Annotated[int, Field(ge=0, le=3)]
Compression = Annotated[int, Field(ge=0, le=100)]
ModelName = Annotated[str, Field(max_length=MAX_MODEL_CHARACTERS)]


class SvgReasoning(TypedDict, total=False):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class SvgAuthor(TypedDict, total=False):
    """The model that writes the SVG."""

    model: ModelName
    reasoning: SvgReasoning


class _NeverReported(TypedDict, total=False):
    """The provider repeats none of these with an image."""

    complexity: Literal["low", "medium", "high"]
    frame_count: Annotated[int, Field(ge=2, le=16)]
    frame_duration_ms: Annotated[int, Field(ge=1)]
    input_fidelity: Literal["high", "low"]
    model: ModelName
    moderation: Literal["auto", "low"]
    output_compression: Compression
    svg: SvgAuthor


class _LeftToTheProvider(_NeverReported, total=False):
    action: Literal["generate", "edit", "auto"]


class ImageOptions(_LeftToTheProvider):
    """The image tool's options under the provider's names; one that is absent is left to the provider."""

    background: Background
    output_format: Format
    partial_images: Partials
    quality: Quality
    size: str


@with_config(extra="forbid")
class ImageRequest(_LeftToTheProvider, total=False):
    """Options for one run: `size` is `auto` or WIDTHxHEIGHT. Which go together depends on format and model."""

    background: Background
    compression: Compression
    format: Format
    output_format: Format
    partial_images: Partials
    quality: Quality
    size: str


class SvgUsage(TypedDict, total=False):
    """Tokens of the model that wrote the SVG."""

    model: str
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int


@with_config(extra="allow")
class AttachmentOptions(_NeverReported, total=False):
    """What was requested of the image tool, and over it what the provider reports: any text, and further names.

    `reduced_from` is how many bytes an image had that was written again smaller. Of an upload there is only `mask`, the
    kind of mask that it could serve as.
    """

    action: str
    background: str
    output_format: str
    partial_images: int
    quality: str
    size: str
    svg_usage: SvgUsage
    mask: Literal["alpha", "black_and_white"]
    reduced_from: int


def _unchecked(options: Any, _check: ValidatorFunctionWrapHandler) -> Any:
    return options


# Without a return type, which would take the place of the TypedDict in the OpenAPI document.
def _as_it_is(options: Any):
    return options


# A row is shown whatever it holds: it was written under the rules of its day, with what the provider reported then.
StoredOptions = Annotated[AttachmentOptions, WrapValidator(_unchecked), PlainSerializer(_as_it_is)]
