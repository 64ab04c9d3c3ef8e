"""From checked specs to the SDK's agents, wired for handoffs."""

from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import Any

from agents import Agent, ModelSettings
from agents.models.interface import Model

from app.agents._shared.registry import LoadedAgent, Registry
from app.agents._shared.sdk_tools import make_tools
from app.agents._shared.tools import IMAGE_TOOL, does_more_than_draw


def build_agent(
    registry: Registry,
    key: str,
    *,
    model_for: Callable[[LoadedAgent], Model],
    image_options: Callable[[LoadedAgent], Mapping[str, Any]],
    tool_choice: str | None,
    runs_in_background: Callable[[LoadedAgent], bool],
    safety_identifier: str,
    without: Container[str] = (),
) -> Agent[Any]:
    """The agent `key` with all agents that it can reach by handoffs, in circles too.

    `tool_choice` goes before the spec's own, for this first agent alone; the SDK drops it once a tool was used.
    `image_options` returns an agent's wire options, without `type`. `safety_identifier` stands for the user, so that
    the provider can block one user and not the whole account. Tools `without` are left out, and handoffs to agents that
    have nothing else.
    """
    built: dict[str, Agent[Any]] = {}
    for loaded in _reachable(registry, key):
        spec = loaded.spec
        built[spec.key] = Agent[Any](
            name=spec.key,
            handoff_description=spec.description,
            instructions=loaded.prompt,
            model=model_for(loaded),
            model_settings=ModelSettings(
                tool_choice=spec.tool_choice if spec.key != key or tool_choice is None else tool_choice,
                store=spec.store,
                include_usage=True,
                extra_args={
                    "safety_identifier": safety_identifier,
                    **({"background": True} if runs_in_background(loaded) else {}),
                },
            ),
            tools=make_tools(spec, loaded.functions, partial(image_options, loaded), without),
        )
    for agent_key, agent in built.items():
        agent.handoffs = [built[other] for other in _handoffs(registry, agent_key, without)]
    return built[key]


def _handoffs(registry: Registry, key: str, without: Container[str]) -> list[str]:
    others = registry.specs[key].spec.handoff_keys
    return [other for other in others if IMAGE_TOOL not in without or does_more_than_draw(registry.specs[other].spec)]


def _reachable(registry: Registry, key: str) -> list[LoadedAgent]:
    found = [key]
    for reached in found:  # grows while it is walked
        found.extend(other for other in registry.specs[reached].spec.handoff_keys if other not in found)
    return [registry.specs[reached] for reached in found]
