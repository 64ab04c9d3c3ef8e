"""The tools that come with Easel, by key; an agent's own are the functions of its tools.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, cast

from app.agents._shared.specs import AgentSpec
from app.images import options as image_options
from app.images.options import OptionError
from app.settings import Settings

IMAGE_TOOL = "image_generation"


def shipped_tools() -> tuple[str, ...]:
    return (IMAGE_TOOL, *HOSTED_TOOLS)


def tool_choices(spec: AgentSpec) -> tuple[str, ...]:
    """The values that `tool_choice` may have for this agent."""
    return ("auto", "required", "none", *spec.tool_keys)


def does_more_than_draw(spec: AgentSpec) -> bool:
    return bool(spec.handoff_keys) or spec.tool_keys != (IMAGE_TOOL,)


def check_tool_config(tool_key: str, config: Mapping[str, Any], settings: Settings, today: date) -> None:
    """Raise OptionError if a spec's `tool_configs[tool_key]` cannot be used."""
    if tool_key == IMAGE_TOOL:
        image_options.resolve(settings, config, {}, today=today)
    elif tool_key in HOSTED_TOOLS:
        HOSTED_TOOLS[tool_key].check(config)
    elif config:
        raise OptionError(next(iter(config)), next(iter(config.values())), f"no options: {tool_key} has none")


@dataclass(frozen=True)
class HostedTool:
    """A tool that runs at the provider: its options, each with the rule in words and the test of it."""

    rules: Mapping[str, tuple[str, Callable[[object], bool]]]
    required: tuple[str, ...] = ()

    def check(self, config: Mapping[str, Any]) -> None:
        for name, value in config.items():
            if name not in self.rules:
                raise OptionError("option", name, ", ".join(self.rules))
            allowed, holds = self.rules[name]
            if not holds(value):
                raise OptionError(name, value, allowed)
        for name in self.required:
            if name not in config:
                raise OptionError(name, None, self.rules[name][0])


def _is_names(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    names = cast("Sequence[object]", value)
    return bool(names) and all(isinstance(name, str) and name for name in names)


def _is_result_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 50


HOSTED_TOOLS: dict[str, HostedTool] = {
    "web_search": HostedTool(
        {
            "search_context_size": ("low, medium, high", lambda value: value in ("low", "medium", "high")),
            "allowed_domains": ("a list of domains", _is_names),
        },
    ),
    "file_search": HostedTool(
        {
            "vector_store_ids": ("a list of the provider's vector store ids", _is_names),
            "max_num_results": ("a whole number from 1 to 50", _is_result_count),
        },
        required=("vector_store_ids",),
    ),
    "code_interpreter": HostedTool(
        {
            "file_ids": ("a list of the provider's file ids", _is_names),
            "memory_limit": ("1g, 4g, 16g, 64g", lambda value: value in ("1g", "4g", "16g", "64g")),
        },
    ),
}
