"""What a response tells of the use that the provider charges for."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from openai.types.responses import Response, ResponseCodeInterpreterToolCall
from openai.types.responses.response_output_item import ImageGenerationCall
from openai.types.responses.tool import ImageGeneration

Json = dict[str, Any]

_TOLD = {"status", "model", "service_tier", "usage", "tool_usage"}


@dataclass(frozen=True)
class ReportedPicture:
    """One that came; `size` and `quality` are None where the item does not name them."""

    tool_call_id: str
    size: str | None
    quality: str | None
    frames: int


@dataclass(frozen=True)
class ResponseReport:
    """`usage`, `tool_usage` and the `svg_usage` by tool call are the provider's JSON.

    What the response does not name is None. `containers` counts the code interpreter's sessions.
    """

    status: str | None
    model: str | None
    service_tier: str | None
    usage: Json | None
    tool_usage: Json | None
    svg_usage: dict[str, Json]
    image_model: str | None
    containers: int
    pictures: list[ReportedPicture]


def report_of(response: Response, drawn: Collection[str]) -> ResponseReport:
    """`drawn` are the image calls that brought an image, whose `result` may be gone by now."""
    told = response.model_dump(include=_TOLD)
    tool = next((tool for tool in response.tools if isinstance(tool, ImageGeneration)), None)
    calls = [item for item in response.output if isinstance(item, ImageGenerationCall)]
    sessions = {item.container_id for item in response.output if isinstance(item, ResponseCodeInterpreterToolCall)}
    return ResponseReport(
        **{name: told.get(name) for name in _TOLD},
        svg_usage={call.id: call.svg_usage.model_dump() for call in calls if call.svg_usage is not None},
        image_model=tool.model if tool else None,
        containers=len(sessions),
        pictures=[_picture(call, tool) for call in calls if call.id in drawn or call.result],
    )


def _picture(call: ImageGenerationCall, tool: ImageGeneration | None) -> ReportedPicture:
    frames = tool.frame_count if tool and call.output_format == "gif" else None
    return ReportedPicture(call.id, call.size, call.quality, frames or 1)
