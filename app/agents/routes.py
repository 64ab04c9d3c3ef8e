"""The agents there are to talk with."""

from typing import Annotated, cast

from fastapi import APIRouter

from app.agents._shared.registry import Registry, image_options
from app.agents._shared.tools import IMAGE_TOOL
from app.agents.schemas import AgentList, AgentView, ImageOptions
from app.db import from_state
from app.identity.actor import CurrentSettings, may_apart
from app.identity.permissions import Permission
from app.identity.service import Actor

router = APIRouter(prefix="/v1/agents", tags=["agents"])


@router.get("")
async def list_agents(
    actor: Annotated[Actor, may_apart(Permission.READ_CHAT)],
    settings: CurrentSettings,
    registry: Annotated[Registry, from_state("registry")],
) -> AgentList:
    """List the agents.

    `image` holds the options that a run gets where it names none.
    """
    views = [
        AgentView(
            key=key,
            display_name=loaded.spec.display_name,
            description=loaded.spec.description,
            tools=list(loaded.spec.tool_keys),
            image=cast(ImageOptions, image_options(settings, loaded, {}))
            if IMAGE_TOOL in loaded.spec.tool_keys
            else None,
        )
        for key, loaded in sorted(registry.specs.items())
    ]
    return AgentList(data=views)
