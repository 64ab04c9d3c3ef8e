"""Agents on the wire."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.images.schemas import ImageOptions

_SCHEMA = (
    "JSON Schema (2020-12) of what a run may set in its `image`, "
    "with this agent's defaults and the rules between options."
)


class AgentView(BaseModel):
    """`image` holds the options that a run gets where it names none; null where the agent cannot draw.

    `image_schema` is made to draw a form from: it describes a run's `image` under the names that it shows there, and is
    null with `image`. A value that the run's own format cannot take is refused; one of the agent's is left out then.
    """

    key: str
    display_name: str
    description: str
    tools: list[str]
    image: ImageOptions | None
    image_schema: Annotated[dict[str, Any] | None, Field(description=_SCHEMA)]


class AgentList(BaseModel):
    data: list[AgentView]
