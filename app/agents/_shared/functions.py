"""Plain functions of an agent's tools.py: which there are, and whether a model could call them."""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import ModuleType
from typing import Any, get_args, get_type_hints

from app.agents._shared.specs import ToolContext
from app.images.options import OptionError

FIELD = "tools.py"
# The provider's rule; the SDK calls its hand-offs transfer_to_<agent>.
_NAME = re.compile(r"(?!transfer_to_)[A-Za-z0-9_]{1,64}")

Function = Callable[..., Any]


def public_functions(module: ModuleType) -> dict[str, Function]:
    """What `tool_keys` may name; a tools.py may import functions of another agent's."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isfunction(value) or _is_sdk_tool(value))
    }


def repeated_functions(source: str) -> list[str]:
    """Names that are defined twice: Python would silently keep the last."""
    nodes = ast.parse(source).body
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sorted({name for name in names if names.count(name) > 1})


def check_function(name: str, function: Function) -> Function:
    """The function; raises OptionError for one that the model could not call, as far as that shows without the SDK."""
    if _is_sdk_tool(function):
        raise OptionError(FIELD, name, "a plain function, not the SDK's tool: Easel makes the tool of it")
    if not _NAME.fullmatch(name):
        raise OptionError(FIELD, name, "a name of up to 64 ASCII characters that does not begin with transfer_to_")
    if not inspect.getdoc(function):
        raise OptionError(FIELD, name, "a function with a docstring, which the model reads to know when to call it")
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:  # whatever a name in an annotation raises
        raise indescribable(name, error) from error
    arguments = arguments_of(function, hints)
    untyped = [parameter.name for parameter in arguments if parameter.name not in hints]
    if untyped:
        raise OptionError(FIELD, name, f"a function whose parameters all have types (not so: {', '.join(untyped)})")
    # Taken for an argument, it would be filled in by the model: ids of its own choice.
    if any(ToolContext in (hints[parameter.name], *get_args(hints[parameter.name])) for parameter in arguments):
        raise OptionError(FIELD, name, "a function whose first parameter, and no other, is exactly a ToolContext")
    return function


def indescribable(name: str, error: Exception) -> OptionError:
    allowed = f"a function whose parameters JSON Schema can describe ({type(error).__name__}: {error})"
    return OptionError(FIELD, name, allowed)


def takes_context(function: Function, hints: Mapping[str, Any]) -> bool:
    first = next(iter(inspect.signature(function).parameters), None)
    return first is not None and hints.get(first) is ToolContext


def arguments_of(function: Function, hints: Mapping[str, Any]) -> list[Parameter]:
    """The parameters that the model fills in."""
    parameters = list(inspect.signature(function).parameters.values())
    return parameters[1:] if takes_context(function, hints) else parameters


def _is_sdk_tool(value: object) -> bool:
    # Only where somebody has loaded the SDK can there be a tool of it.
    sdk = sys.modules.get("agents")
    return sdk is not None and isinstance(value, sdk.FunctionTool)
