"""Finds the agents, checks every one of them, and stops the start with all faults at once."""

import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any, cast

from app.agents._shared.checks import fault, field_faults, settings_faults, spec_faults
from app.agents._shared.functions import FIELD, Function, check_function, public_functions, repeated_functions
from app.agents._shared.specs import AgentSpec
from app.agents._shared.tools import IMAGE_TOOL, shipped_tools, tool_choices
from app.images import deprecations, options
from app.images.options import OptionError
from app.settings import Settings, SettingsError

log = logging.getLogger(__name__)

AGENTS_DIRECTORY = Path(__file__).resolve().parent.parent
SHIPPED = ("assistant", "designer")
"""The folders there that come with Easel; every other one is the user's."""


MakeTool = Callable[[str, Function], Any]

Found = dict[str, tuple[AgentSpec, Path]]
"""By key, each with its folder."""


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
    shipped, own = _find_specs(_agent_folders(directory, settings, faults), faults)
    found = {**shipped, **own}
    replaced = [
        f"agent {key!r}: the one in {own[key][1]} replaces the one that comes with Easel"
        for key in sorted(shipped.keys() & own.keys())
    ]
    faults.extend(settings_faults(settings, today))
    specs: dict[str, LoadedAgent] = {}
    for spec, folder in found.values():
        own_tools, functions = _read_functions(spec, folder, make_tool, faults)
        faults.extend(spec_faults(spec, (*shipped_tools(), *own_tools), found, settings, today))
        prompt = _read_prompt(spec, folder, faults)
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


def _agent_folders(directory: Path, settings: Settings, faults: list[str]) -> list[Path]:
    found: list[Path] = []
    for place in (directory, *settings.agents_dir):
        folders = sorted(spec.parent for spec in place.glob("*/spec.py") if not spec.parent.name.startswith("_"))
        found.extend(folders)
        if not folders:
            setting = "AGENTS_DIR: " if place in settings.agents_dir else ""
            what = "an agent is a folder in it with a spec.py that has get_agent_spec()"
            faults.append(f"{setting}{place} does not exist or holds no agent; {what}.")
    return found


def _find_specs(folders: Iterable[Path], faults: list[str]) -> tuple[Found, Found]:
    """Those that come with Easel, and the user's own."""
    shipped: Found = {}
    own: Found = {}
    for folder in folders:
        spec = _read_spec(folder, faults)
        if spec is None:
            continue
        agents = shipped if folder.parent == AGENTS_DIRECTORY and folder.name in SHIPPED else own
        if spec.key in agents:
            other = agents[spec.key][1]
            faults.append(fault(spec.key, "key", spec.key, f"a key of its own ({other} has it already)"))
            continue
        agents[spec.key] = (spec, folder)
    return shipped, own


def _read_spec(folder: Path, faults: list[str]) -> AgentSpec | None:
    """The spec, or None if a field has a wrong type or the file cannot be read."""
    try:
        spec: object = _import(folder, "spec").get_agent_spec()
    except Exception as error:  # whatever an author's file raises is a fault like any other
        faults.append(_unreadable(folder / "spec.py", error))
        return None
    if not isinstance(spec, AgentSpec):
        faults.append(fault(folder.name, "get_agent_spec()", spec, "an AgentSpec"))
        return None
    wrong = field_faults(spec)
    faults.extend(wrong)
    return None if wrong else spec


def _read_functions(
    spec: AgentSpec, folder: Path, make_tool: MakeTool, faults: list[str]
) -> tuple[Iterable[str], Mapping[str, Any]]:
    """The names of the functions in the folder's tools.py, and as tools those that the spec names."""
    path = folder / "tools.py"
    if not path.exists():
        return (), {}
    try:
        module = _import(folder, "tools")
        repeated = repeated_functions(path.read_text(encoding="utf-8"))
    except Exception as error:
        faults.append(_unreadable(path, error))
        return spec.tool_keys, {}  # the same file must not be reported for each of its tools
    functions = public_functions(module)
    hiding = sorted(functions.keys() & set(shipped_tools()))
    faults.extend(fault(spec.key, FIELD, name, "a name that is defined once") for name in repeated)
    faults.extend(fault(spec.key, FIELD, name, "a name that no tool of Easel's has") for name in hiding)
    tools: dict[str, Any] = {}
    for key in spec.tool_keys:
        if key in functions and key not in hiding:
            try:
                tools[key] = make_tool(key, functions[key])
            except OptionError as error:
                faults.append(f"agent {spec.key!r}: {error}")
    # Imported helpers are not worth a suggestion.
    named = [key for key, one in functions.items() if key in spec.tool_keys or one.__module__ == module.__name__]
    return named, tools


def _import(folder: Path, name: str) -> ModuleType:
    """`<folder>/<name>.py`. Outside app.agents the folder is a package of its own, so its files may import siblings."""
    if folder.parent == AGENTS_DIRECTORY:
        return importlib.import_module(f"app.agents.{folder.name}.{name}")
    package = f"easel_agent_{hashlib.sha256(bytes(folder.resolve())).hexdigest()[:16]}"
    if package not in sys.modules:
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[package] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{package}.{name}")


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} cannot be read: {type(error).__name__}: {error}"


def _read_prompt(spec: AgentSpec, folder: Path, faults: list[str]) -> str | None:
    if spec.prompt_path is None:
        return None
    given = "prompt.md" if isinstance(spec.prompt_path, EllipsisType) else str(spec.prompt_path)
    try:
        text = (folder / given).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        faults.append(fault(spec.key, "prompt_path", given, f"a text file (UTF-8) that exists, seen from {folder}"))
        return None
    if not text:
        faults.append(fault(spec.key, "prompt_path", given, "a prompt with words in it, or None for no prompt"))
    return text


def _deprecations(agents: Iterable[LoadedAgent], settings: Settings, today: date) -> list[str]:
    used = [("IMAGE_MODEL", settings.image_model)] if settings.image_model else []
    for agent in agents:
        used.append((f"agent {agent.spec.key!r}", agent.model))
        image = agent.spec.tool_configs.get(IMAGE_TOOL, {})
        svg = cast("Mapping[str, Any]", image.get("svg") or {})
        used.extend((f"agent {agent.spec.key!r}", part["model"]) for part in (image, svg) if part.get("model"))
    warned = ((owner, deprecations.warning(model, today)) for owner, model in used)
    return list(dict.fromkeys(f"{owner}: {sentence}" for owner, sentence in warned if sentence))
