"""What is wrong with a spec: each fault is one line with agent, field, value and what is allowed."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import EllipsisType
from typing import Annotated, Any, TypeAlias

from pydantic import Field, InstanceOf, StringConstraints, TypeAdapter, ValidationError

from app.agents._shared.specs import AgentSpec
from app.agents._shared.tools import IMAGE_TOOL, check_tool_config, tool_choices
from app.images import options
from app.images.options import OptionError
from app.settings import Settings

_KEY_RULE = "lower-case letters, digits, - and _, with a letter or digit first"
_Key: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
_Text: TypeAlias = Annotated[str, StringConstraints(pattern=r"\S")]
_OptionalKey: TypeAlias = _Key | None
_OptionalText: TypeAlias = _Text | None
_PromptPath: TypeAlias = Path | _Text | InstanceOf[EllipsisType] | None

# Specs are written by hand and not always type-checked: field -> what is allowed, in words and as a type.
_FIELDS: dict[str, tuple[str, Any]] = {
    "key": (_KEY_RULE, _Key),
    "display_name": ("a text", _Text),
    "description": ("a text", _Text),
    "model_key": ("None, or " + _KEY_RULE, _OptionalKey),
    "tool_keys": ("a tuple of tool keys, such as ('image_generation',)", tuple[str, ...]),
    "tool_configs": ("a dict of options by tool key", Mapping[str, Mapping[Any, Any]]),
    "prompt_path": ("a path, ... for prompt.md, or None", _PromptPath),
    "handoff_keys": ("a tuple of agent keys, such as ('designer',)", tuple[str, ...]),
    "tool_choice": ("None or a text", _OptionalText),
    "store": ("True or False", bool),
    "max_turns": ("a whole number of 1 or more", Annotated[int, Field(ge=1)]),
}


def fault(agent: str, field: str, value: object, allowed: str) -> str:
    return f"agent {agent!r}: {OptionError(field, value, allowed)}"


def field_faults(spec: AgentSpec) -> list[str]:
    """Fields of a wrong type."""
    return [
        fault(str(spec.key), name, getattr(spec, name), allowed)
        for name, (allowed, kind) in _FIELDS.items()
        if not _is(kind, getattr(spec, name))
    ]


def spec_faults(
    spec: AgentSpec, tools: Sequence[str], agents: Iterable[str], settings: Settings, today: date
) -> list[str]:
    """Fields that do not fit each other, the agent's `tools` or the other `agents`."""
    faults: list[str] = []
    others = sorted(key for key in agents if key != spec.key)
    for tool_key in spec.tool_keys:
        if tool_key not in tools:
            faults.append(fault(spec.key, "tool_keys", tool_key, ", ".join(tools)))
            continue
        try:
            check_tool_config(tool_key, spec.tool_configs.get(tool_key, {}), settings, today)
        except OptionError as error:
            if tool_key == IMAGE_TOOL and settings_faults(settings, today):
                continue  # reported once, with the setting's name
            faults.append(f"agent {spec.key!r}: tool_configs.{tool_key}.{error}")
    faults.extend(
        fault(spec.key, "tool_configs", tool_key, f"only tools listed in tool_keys ({_listed(spec.tool_keys)})")
        for tool_key in spec.tool_configs
        if tool_key not in spec.tool_keys
    )
    for name, values in (("tool_keys", spec.tool_keys), ("handoff_keys", spec.handoff_keys)):
        repeated = sorted({value for value in values if values.count(value) > 1})
        faults.extend(fault(spec.key, name, value, "each key once") for value in repeated)
    faults.extend(
        fault(spec.key, "handoff_keys", key, f"the other agents' keys ({_listed(others)})")
        for key in spec.handoff_keys
        if key not in others
    )
    if spec.tool_choice is not None and spec.tool_choice not in tool_choices(spec):
        faults.append(fault(spec.key, "tool_choice", spec.tool_choice, ", ".join(tool_choices(spec))))
    return faults


def settings_faults(settings: Settings, today: date) -> list[str]:
    try:
        options.check_settings(settings, today=today)
    except OptionError as error:
        return [f"settings: {error}"]
    return []


def _is(kind: Any, value: object) -> bool:
    try:
        TypeAdapter[Any](kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys) or "none"
