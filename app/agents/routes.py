"""The agents there are to talk with."""

from typing import Annotated, cast

from app.agents._shared.registry import LoadedAgent, Registry, image_options
from app.agents._shared.tools import IMAGE_TOOL
from app.agents.schemas import AgentList, AgentView
from app.db import from_state
from app.identity.actor import CurrentSettings, may_apart
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.images.option_schema import schema_of
from app.images.option_types import OptionError
from app.images.schemas import ImageOptions
from app.openapi import Router
from app.settings import Settings

router = Router(prefix="/v1/agents", tags=["agents"])


@router.get("")
async def list_agents(
    actor: Annotated[Actor, may_apart(Permission.READ_CHAT)],
    settings: CurrentSettings,
    registry: Annotated[Registry, from_state("registry")],
) -> AgentList:
    """List the agents.

    `image` holds the options that a run gets where it names none, `image_schema` says what it may name.
    """
    return AgentList(data=[_view(settings, loaded) for _, loaded in sorted(registry.specs.items())])


def _view(settings: Settings, loaded: LoadedAgent) -> AgentView:
    spec = loaded.spec
    try:
        image = image_options(settings, loaded, {}) if IMAGE_TOOL in spec.tool_keys else None
    except OptionError:
        image = None  # its model was shut down since the start
    return AgentView(
        key=spec.key,
        display_name=spec.display_name,
        description=spec.description,
        tools=list(spec.tool_keys),
        image=cast(ImageOptions | None, image),
        image_schema=None if image is None else schema_of(settings, spec.tool_configs.get(IMAGE_TOOL, {})),
    )
