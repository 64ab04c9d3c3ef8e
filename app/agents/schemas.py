"""Agents on the wire."""

from typing import Any

from pydantic import BaseModel


class AgentView(BaseModel):
    """`image` holds the picture options a run gets where it asks for none; null where the agent cannot draw."""

    key: str
    display_name: str
    description: str
    tools: list[str]
    image: dict[str, Any] | None


class AgentList(BaseModel):
    data: list[AgentView]
