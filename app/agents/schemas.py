"""Agents on the wire, and the options of their image tool."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, with_config
from typing_extensions import TypedDict

Background = Literal["auto", "opaque", "transparent"]
Format = Literal["png", "jpeg", "webp", "gif", "svg"]
Quality = Literal["low", "medium", "high", "xhigh", "max", "auto"]
Partials = Annotated[int, Field(ge=0, le=3)]
Compression = Annotated[int, Field(ge=0, le=100)]


# The limit in app/images/options.py.
ModelName = Annotated[str, Field(max_length=100)]


class SvgReasoning(TypedDict, total=False):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class SvgAuthor(TypedDict, total=False):
    """The model that writes the SVG."""

    model: ModelName
    reasoning: SvgReasoning


class _LeftToTheProvider(TypedDict, total=False):
    action: Literal["generate", "edit", "auto"]
    complexity: Literal["low", "medium", "high"]
    frame_count: Annotated[int, Field(ge=2, le=16)]
    frame_duration_ms: Annotated[int, Field(ge=1)]
    input_fidelity: Literal["high", "low"]
    model: ModelName
    moderation: Literal["auto", "low"]
    output_compression: Compression
    svg: SvgAuthor


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


class AgentView(BaseModel):
    """`image` holds the options that a run gets where it names none; null where the agent cannot draw."""

    key: str
    display_name: str
    description: str
    tools: list[str]
    image: ImageOptions | None


class AgentList(BaseModel):
    data: list[AgentView]
