"""Function tools: the plain functions of an agent's tools.py, made ready for the SDK."""

import ast
import asyncio
import functools
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import ModuleType
from typing import Any, cast, get_args, get_type_hints

from agents import FunctionTool, RunContextWrapper, function_tool

from app.agents._shared.specs import ToolContext
from app.images.options import OptionError

log = logging.getLogger(__name__)

FIELD = "tools.py"
# The provider's rule; the SDK calls its hand-offs transfer_to_<agent>.
_NAME = re.compile(r"(?!transfer_to_)[A-Za-z0-9_]{1,64}")


Function = Callable[..., Any] | FunctionTool


def public_functions(module: ModuleType) -> dict[str, Function]:
    """What `tool_keys` may name; a tools.py may import functions of another agent's."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, FunctionTool))
    }


def repeated_functions(source: str) -> list[str]:
    """Names that are defined twice: Python would silently keep the last."""
    nodes = ast.parse(source).body
    names = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sorted({name for name in names if names.count(name) > 1})


def make_function_tool(name: str, function: Function) -> FunctionTool:
    """Raises OptionError for a function that the model could not call."""
    if isinstance(function, FunctionTool):
        raise OptionError(FIELD, name, "a plain function, not the SDK's tool: Easel makes the tool of it")
    if not _NAME.fullmatch(name):
        raise OptionError(FIELD, name, "a name of up to 64 ASCII characters that does not begin with transfer_to_")
    if not inspect.getdoc(function):
        raise OptionError(FIELD, name, "a function with a docstring, which the model reads to know when to call it")
    parameters = list(inspect.signature(function).parameters.values())
    try:
        hints = get_type_hints(function, include_extras=True)
        takes_context = bool(parameters) and hints.get(parameters[0].name) is ToolContext
        arguments = parameters[1:] if takes_context else parameters
        _check_arguments(name, arguments, hints)
        return function_tool(_as_the_sdk_calls_it(name, function, arguments, hints, takes_context), name_override=name)
    except OptionError:
        raise
    except Exception as error:  # of the SDK, pydantic, or a name in an annotation that is not there
        allowed = f"a function whose parameters JSON Schema can describe ({type(error).__name__}: {error})"
        raise OptionError(FIELD, name, allowed) from error


def _check_arguments(name: str, arguments: list[Parameter], hints: Mapping[str, Any]) -> None:
    untyped = [parameter.name for parameter in arguments if parameter.name not in hints]
    if untyped:
        raise OptionError(FIELD, name, f"a function whose parameters all have types (not so: {', '.join(untyped)})")
    # Taken for an argument, it would be filled in by the model: ids of its own choice.
    if any(ToolContext in (hints[parameter.name], *get_args(hints[parameter.name])) for parameter in arguments):
        raise OptionError(FIELD, name, "a function whose first parameter, and no other, is exactly a ToolContext")


def _as_the_sdk_calls_it(
    name: str,
    function: Callable[..., Any],
    arguments: list[Parameter],
    hints: Mapping[str, Any],
    takes_context: bool,
) -> Callable[..., Any]:
    """The SDK passes a wrapper of the context first, and tells nobody but the model that a tool has failed."""

    @functools.wraps(function)
    async def call(context: RunContextWrapper[ToolContext], *args: Any, **kwargs: Any) -> Any:
        given = (context.context, *args) if takes_context else args
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*given, **kwargs)
            return await asyncio.to_thread(function, *given, **kwargs)
        except Exception:
            log.exception("tool.failed", extra={"tool": name})
            raise

    first = Parameter("_context", Parameter.POSITIONAL_ONLY, annotation=RunContextWrapper[Any])
    typed = cast(Any, call)
    typed.__signature__ = inspect.Signature([first, *arguments])
    typed.__annotations__ = {first.name: first.annotation} | {one.name: hints[one.name] for one in arguments}
    return call
