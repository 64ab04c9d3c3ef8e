"""The files of an agent's folder: found, read, and every fault of an author noted instead of raised."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any

from app.agents._shared.checks import fault, field_faults
from app.agents._shared.functions import FIELD, Function, public_functions, repeated_functions
from app.agents._shared.specs import AgentSpec
from app.agents._shared.tools import shipped_tools
from app.images.options import OptionError
from app.settings import Settings

AGENTS_DIRECTORY = Path(__file__).resolve().parent.parent
SHIPPED = ("assistant", "designer")
"""The folders there that come with Easel; every other one is the user's."""


MakeTool = Callable[[str, Function], Any]

Found = dict[str, tuple[AgentSpec, Path]]
"""By key, each with its folder."""


def agent_folders(directory: Path, settings: Settings, faults: list[str]) -> list[Path]:
    found: list[Path] = []
    for place in (directory, *settings.agents_dir):
        folders = sorted(spec.parent for spec in place.glob("*/spec.py") if not spec.parent.name.startswith("_"))
        found.extend(folders)
        if not folders:
            setting = "AGENTS_DIR: " if place in settings.agents_dir else ""
            what = "an agent is a folder in it with a spec.py that has get_agent_spec()"
            faults.append(f"{setting}{place} does not exist or holds no agent; {what}.")
    return found


def find_specs(folders: Iterable[Path], faults: list[str]) -> tuple[Found, Found]:
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


def read_functions(
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


def read_prompt(spec: AgentSpec, folder: Path, faults: list[str]) -> str | None:
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
