"""Finds the agents, checks every one of them, and stops the start with all faults at once."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast

from app.agents._shared.checks import settings_faults, spec_faults
from app.agents._shared.functions import check_function
from app.agents._shared.spec_files import (
    AGENTS_DIRECTORY,
    MakeTool,
    agent_folders,
    find_specs,
    read_functions,
    read_prompt,
)
from app.agents._shared.specs import AgentSpec
from app.agents._shared.tools import IMAGE_TOOL, shipped_tools, tool_choices
from app.images import deprecations, options
from app.images.options import OptionError
from app.settings import Settings, SettingsError

log = logging.getLogger(__name__)


class SpecError(SettingsError):
    """The agents cannot be used; the message lists every fault, one a line."""


@dataclass(frozen=True)
class LoadedAgent:
    """A checked spec, its prompt (None without one), its own function tools and the model that the settings name.

    `functions` holds what the `make_tool` of `load_registry` returned.
    """

    spec: AgentSpec
    prompt: str | None
    functions: Mapping[str, Any]
    model: str


@dataclass(frozen=True)
class Registry:
    """All agents by key; `warnings` are sentences about replaced agents and deprecated models."""

    specs: dict[str, LoadedAgent]
    warnings: list[str]


def load_registry(
    settings: Settings,
    directory: Path = AGENTS_DIRECTORY,
    *,
    today: date | None = None,
    make_tool: MakeTool = check_function,
) -> Registry:
    """Load `<any name>/spec.py` of the directory and of `AGENTS_DIR`. Raises SpecError; logs the warnings.

    Folders that start with `_` are left out. A user's agent replaces a shipped one that has the same key.
    `make_tool` makes each function a tool, or raises OptionError: `make_function_tool` where runs are executed.
    """
    today = today or datetime.now(UTC).date()
    faults: list[str] = []
    shipped, own = find_specs(agent_folders(directory, settings, faults), faults)
    found = {**shipped, **own}
    replaced = [
        f"agent {key!r}: the one in {own[key][1]} replaces the one that comes with Easel"
        for key in sorted(shipped.keys() & own.keys())
    ]
    faults.extend(settings_faults(settings, today))
    specs: dict[str, LoadedAgent] = {}
    for spec, folder in found.values():
        own_tools, functions = read_functions(spec, folder, make_tool, faults)
        faults.extend(spec_faults(spec, (*shipped_tools(), *own_tools), found, settings, today))
        prompt = read_prompt(spec, folder, faults)
        specs[spec.key] = LoadedAgent(spec, prompt, functions, settings.model_for(spec.model_key))
    if faults:
        raise SpecError("The agents cannot be used:\n" + "\n".join(f"- {one}" for one in faults))
    warnings = replaced + _deprecations(specs.values(), settings, today)
    for warning in warnings:
        log.warning("agents.warning", extra={"warning": warning})
    return Registry(specs, warnings)


def image_options(settings: Settings, loaded: LoadedAgent, run_options: Mapping[str, object]) -> dict[str, Any]:
    """The agent's wire options for one run; raises OptionError."""
    return options.resolve(settings, loaded.spec.tool_configs.get(IMAGE_TOOL, {}), run_options)


def runs_in_background(settings: Settings, loaded: LoadedAgent) -> bool:
    """Whether the provider completes this agent's responses without a listener, so that no paid image is lost."""
    return settings.upstream_background and loaded.spec.store and IMAGE_TOOL in loaded.spec.tool_keys


def check_tool_choice(loaded: LoadedAgent, choice: str) -> None:
    """Raise OptionError if the agent has no such tool."""
    choices = tool_choices(loaded.spec)
    if choice not in choices:
        raise OptionError("tool_choice", choice, ", ".join(choices))


def _deprecations(agents: Iterable[LoadedAgent], settings: Settings, today: date) -> list[str]:
    used = [("IMAGE_MODEL", settings.image_model)] if settings.image_model else []
    for agent in agents:
        used.append((f"agent {agent.spec.key!r}", agent.model))
        image = agent.spec.tool_configs.get(IMAGE_TOOL, {})
        svg = cast("Mapping[str, Any]", image.get("svg") or {})
        used.extend((f"agent {agent.spec.key!r}", part["model"]) for part in (image, svg) if part.get("model"))
    warned = ((owner, deprecations.warning(model, today)) for owner, model in used)
    return list(dict.fromkeys(f"{owner}: {sentence}" for owner, sentence in warned if sentence))
