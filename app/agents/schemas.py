"""Agents on the wire."""

from typing import Literal, Required

from pydantic import BaseModel
from typing_extensions import TypedDict

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class SvgReasoning(TypedDict, total=False):
    effort: Effort


class SvgAuthor(TypedDict, total=False):
    """The model that writes the SVG."""

    model: str
    reasoning: SvgReasoning


class ImageOptions(TypedDict, total=False):
    """The image tool's options under the provider's names; one that is absent is left to the provider."""

    action: Literal["generate", "edit", "auto"]
    background: Required[Literal["auto", "opaque", "transparent"]]
    complexity: Literal["low", "medium", "high"]
    frame_count: int
    frame_duration_ms: int
    input_fidelity: Literal["high", "low"]
    model: str
    moderation: Literal["auto", "low"]
    output_compression: int
    output_format: Required[Literal["png", "jpeg", "webp", "gif", "svg"]]
    partial_images: Required[int]
    quality: Required[Literal["low", "medium", "high", "xhigh", "max", "auto"]]
    size: Required[str]
    svg: SvgAuthor


class AgentView(BaseModel):
    """`image` holds the options that a run gets where it names none; null where the agent cannot draw."""

    key: str
    display_name: str
    description: str
    tools: list[str]
    image: ImageOptions | None


class AgentList(BaseModel):
    data: list[AgentView]
