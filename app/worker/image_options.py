"""The image tool's options of a run, resolved once for each agent that draws in it."""

from collections.abc import Callable
from functools import cache
from typing import Any

from app.agents._shared import registry as agents
from app.agents._shared.registry import Registry
from app.agents._shared.tools import IMAGE_TOOL
from app.runs.models import Run
from app.settings import Settings

ImageOptions = Callable[[str], dict[str, Any]]
"""An agent's key -> its wire options in this run, without `type`; empty for an agent that does not draw."""


def image_options_of(settings: Settings, registry: Registry, run: Run) -> ImageOptions:
    """The returned function raises OptionError for options that the agent's format or model cannot accept."""

    @cache
    def resolve(agent_key: str) -> dict[str, Any]:
        loaded = registry.specs.get(agent_key)
        if loaded is None or IMAGE_TOOL not in loaded.spec.tool_keys:
            return {}
        return agents.image_options(settings, loaded, run.options.image)

    return resolve
