"""Finds the agents, checks every one of them, and stops the start with all faults at once."""

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any, cast

from app.agents._shared.specs import AgentSpec
from app.agents._shared.tools import IMAGE_TOOL, check_tool_config, tool_choices, tool_names
from app.images import deprecations, options
from app.images.options import OptionError
from app.settings import Settings

AGENTS_DIRECTORY = Path(__file__).resolve().parent.parent
_KEY = re.compile(r"[a-z0-9][a-z0-9_-]*")
_KEY_RULE = "lower-case letters, digits, - and _, with a letter or digit first"


class SpecError(Exception):
    """The agents cannot be used; the message lists every fault, one a line."""


@dataclass(frozen=True)
class LoadedAgent:
    """A checked spec with its prompt's text (None without one) and the model that the settings give it."""

    spec: AgentSpec
    prompt: str | None
    model: str


@dataclass(frozen=True)
class Registry:
    """All agents by key; `warnings` are sentences about deprecated models."""

    specs: dict[str, LoadedAgent]
    warnings: list[str]


def load_registry(settings: Settings, directory: Path = AGENTS_DIRECTORY, *, today: date | None = None) -> Registry:
    """Load `<directory>/<any name>/spec.py`; folders that start with `_` are left out. Raises SpecError."""
    today = today or datetime.now(UTC).date()
    faults: list[str] = []
    found: dict[str, tuple[AgentSpec, Path]] = {}
    for folder in _agent_folders(directory):
        spec = _read_spec(folder, faults)
        if spec is None:
            continue
        if spec.key in found:
            faults.append(_fault(spec.key, "key", spec.key, f"a key of its own ({found[spec.key][1]} has it already)"))
            continue
        found[spec.key] = (spec, folder)
    if not found and not faults:
        faults.append(f"{directory} holds no agent; add a folder with a spec.py that has get_agent_spec().")
    faults.extend(_settings_faults(settings, today))
    specs: dict[str, LoadedAgent] = {}
    for spec, folder in found.values():
        faults.extend(_faults_of(spec, found, settings, today))
        prompt = _read_prompt(spec, folder, faults)
        specs[spec.key] = LoadedAgent(spec, prompt, settings.model_for(spec.model_key))
    if faults:
        raise SpecError("The agents cannot be used:\n" + "\n".join(f"- {fault}" for fault in faults))
    return Registry(specs, _warnings(specs.values(), settings, today))


def image_options(settings: Settings, loaded: LoadedAgent, run_options: Mapping[str, object]) -> dict[str, Any]:
    """The agent's wire options for one run; raises OptionError."""
    return options.resolve(settings, loaded.spec.tool_configs.get(IMAGE_TOOL, {}), run_options)


def runs_in_background(settings: Settings, loaded: LoadedAgent) -> bool:
    """Whether the provider goes on with this agent's answers when nobody listens, so that no picture is lost."""
    return settings.upstream_background and loaded.spec.store and IMAGE_TOOL in loaded.spec.tool_keys


def check_tool_choice(loaded: LoadedAgent, choice: str) -> None:
    """Raise OptionError where the agent has no such tool."""
    choices = tool_choices(loaded.spec)
    if choice not in choices:
        raise OptionError("tool_choice", choice, ", ".join(choices))


def _agent_folders(directory: Path) -> list[Path]:
    return sorted(spec.parent for spec in directory.glob("*/spec.py") if not spec.parent.name.startswith("_"))


def _read_spec(folder: Path, faults: list[str]) -> AgentSpec | None:
    """The spec with every field of the right type, or None with the faults told."""
    try:
        spec: object = _import(folder / "spec.py").get_agent_spec()
    except Exception as error:  # whatever an author's file raises is told like any other fault
        faults.append(f"{folder / 'spec.py'} cannot be read: {type(error).__name__}: {error}")
        return None
    if not isinstance(spec, AgentSpec):
        faults.append(_fault(folder.name, "get_agent_spec()", spec, "an AgentSpec"))
        return None
    wrong = [
        _fault(str(spec.key), name, getattr(spec, name), allowed)
        for name, (allowed, holds) in _FIELD_RULES.items()
        if not holds(getattr(spec, name))
    ]
    faults.extend(wrong)
    return None if wrong else spec


def _import(path: Path) -> ModuleType:
    if path.parent.parent == AGENTS_DIRECTORY:
        return importlib.import_module(f"app.agents.{path.parent.name}.spec")
    found = importlib.util.spec_from_file_location(f"easel_agent_{path.parent.name}", path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _faults_of(spec: AgentSpec, keys: Iterable[str], settings: Settings, today: date) -> list[str]:
    """What is wrong between a spec's fields, the tools and the other agents."""
    faults: list[str] = []
    tools, others = tool_names(), sorted(key for key in keys if key != spec.key)
    for tool_key in spec.tool_keys:
        if tool_key not in tools:
            faults.append(_fault(spec.key, "tool_keys", tool_key, ", ".join(tools)))
            continue
        try:
            check_tool_config(tool_key, spec.tool_configs.get(tool_key, {}), settings, today)
        except OptionError as error:
            if tool_key == IMAGE_TOOL and _settings_faults(settings, today):
                continue  # told once, with the setting's name
            faults.append(f"agent {spec.key!r}: tool_configs.{tool_key}.{error}")
    faults.extend(
        _fault(spec.key, "tool_configs", tool_key, f"only tools listed in tool_keys ({_words(spec.tool_keys)})")
        for tool_key in spec.tool_configs
        if tool_key not in spec.tool_keys
    )
    for name, values in (("tool_keys", spec.tool_keys), ("handoff_keys", spec.handoff_keys)):
        repeated = sorted({value for value in values if values.count(value) > 1})
        faults.extend(_fault(spec.key, name, value, "each key once") for value in repeated)
    faults.extend(
        _fault(spec.key, "handoff_keys", key, f"the other agents' keys ({_words(others)})")
        for key in spec.handoff_keys
        if key not in others
    )
    if spec.tool_choice is not None and spec.tool_choice not in tool_choices(spec):
        faults.append(_fault(spec.key, "tool_choice", spec.tool_choice, ", ".join(tool_choices(spec))))
    return faults


def _settings_faults(settings: Settings, today: date) -> list[str]:
    try:
        options.check_settings(settings, today=today)
    except OptionError as error:
        return [f"settings: {error}"]
    return []


def _read_prompt(spec: AgentSpec, folder: Path, faults: list[str]) -> str | None:
    if spec.prompt_path is None:
        return None
    given = "prompt.md" if isinstance(spec.prompt_path, EllipsisType) else str(spec.prompt_path)
    try:
        text = (folder / given).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        faults.append(_fault(spec.key, "prompt_path", given, f"a text file (UTF-8) that exists, seen from {folder}"))
        return None
    if not text:
        faults.append(_fault(spec.key, "prompt_path", given, "a prompt with words in it, or None for no prompt"))
    return text


def _warnings(agents: Iterable[LoadedAgent], settings: Settings, today: date) -> list[str]:
    used = [("IMAGE_MODEL", settings.image_model)] if settings.image_model else []
    for agent in agents:
        used.append((f"agent {agent.spec.key!r}", agent.model))
        image = agent.spec.tool_configs.get(IMAGE_TOOL, {})
        author = cast("Mapping[str, Any]", image.get("svg") or {})
        used.extend((f"agent {agent.spec.key!r}", part["model"]) for part in (image, author) if part.get("model"))
    warned = ((owner, deprecations.warning(model, today)) for owner, model in used)
    return list(dict.fromkeys(f"{owner}: {sentence}" for owner, sentence in warned if sentence))


def _fault(agent: str, field: str, value: object, allowed: str) -> str:
    return f"agent {agent!r}: {OptionError(field, value, allowed)}"


def _words(keys: Sequence[str]) -> str:
    return ", ".join(keys) or "none"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_key(value: object) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def _is_keys(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(key, str) for key in cast("tuple[object, ...]", value))


def _is_configs(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    configs = cast("Mapping[object, object]", value)
    return all(isinstance(key, str) and isinstance(config, Mapping) for key, config in configs.items())


def _is_turns(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


# Specs are written by hand and not always type-checked: field -> what is allowed, and the test of it.
_FIELD_RULES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "key": (_KEY_RULE, _is_key),
    "display_name": ("a text", _is_text),
    "description": ("a text", _is_text),
    "model_key": ("None, or " + _KEY_RULE, lambda value: value is None or _is_key(value)),
    "tool_keys": ("a tuple of tool keys, such as ('image_generation',)", _is_keys),
    "tool_configs": ("a dict of options by tool key", _is_configs),
    "prompt_path": (
        "a path, ... for prompt.md, or None",
        lambda value: value is ... or value is None or _is_path(value),
    ),
    "handoff_keys": ("a tuple of agent keys, such as ('designer',)", _is_keys),
    "tool_choice": ("None or a text", lambda value: value is None or _is_text(value)),
    "store": ("True or False", lambda value: isinstance(value, bool)),
    "max_turns": ("a whole number of 1 or more", _is_turns),
}


def _is_path(value: object) -> bool:
    return isinstance(value, Path) or _is_text(value)
