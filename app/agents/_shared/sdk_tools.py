"""The tools of an agent as the SDK takes them; an API without a worker does not load this file."""

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Container, Mapping
from inspect import Parameter
from typing import Any, cast, get_type_hints

from agents import (
    CodeInterpreterTool,
    FileSearchTool,
    FunctionTool,
    ImageGenerationTool,
    RunContextWrapper,
    Tool,
    WebSearchTool,
    function_tool,
)

from app.agents._shared.functions import Function, arguments_of, check_function, indescribable, takes_context
from app.agents._shared.specs import AgentSpec, ToolContext
from app.agents._shared.tools import IMAGE_TOOL

log = logging.getLogger(__name__)


def make_tools(
    spec: AgentSpec,
    functions: Mapping[str, FunctionTool],
    image: Callable[[], Mapping[str, Any]],
    without: Container[str],
) -> list[Tool]:
    """The spec's tools but for those `without`; `image` returns the image tool's wire options, if it is among them."""
    tools: list[Tool] = []
    for key in spec.tool_keys:
        if key in without:
            continue
        if key == IMAGE_TOOL:
            # The SDK's type of these options lags behind the wire (gif, svg); it forwards what it is given.
            tools.append(ImageGenerationTool(tool_config=cast("Any", {"type": IMAGE_TOOL, **image()})))
        elif key in _HOSTED:
            tools.append(_HOSTED[key](spec.tool_configs.get(key, {})))
        else:
            tools.append(functions[key])
    return tools


def make_function_tool(name: str, function: Function) -> FunctionTool:
    """Raises OptionError for a function that the model could not call."""
    check_function(name, function)
    hints = get_type_hints(function, include_extras=True)
    try:
        return function_tool(_as_the_sdk_calls_it(name, function, hints), name_override=name)
    except Exception as error:  # of the SDK or pydantic
        raise indescribable(name, error) from error


def _as_the_sdk_calls_it(name: str, function: Function, hints: Mapping[str, Any]) -> Function:
    """The SDK passes a wrapper of the context first, and tells nobody but the model that a tool has failed."""
    with_context = takes_context(function, hints)

    @functools.wraps(function)
    async def call(context: RunContextWrapper[ToolContext], *args: Any, **kwargs: Any) -> Any:
        given = (context.context, *args) if with_context else args
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*given, **kwargs)
            return await asyncio.to_thread(function, *given, **kwargs)
        except Exception:
            log.exception("tool.failed", extra={"tool": name})
            raise

    first = Parameter("_context", Parameter.POSITIONAL_ONLY, annotation=RunContextWrapper[Any])
    arguments = arguments_of(function, hints)
    typed = cast(Any, call)
    typed.__signature__ = inspect.Signature([first, *arguments])
    typed.__annotations__ = {first.name: first.annotation} | {one.name: hints[one.name] for one in arguments}
    return call


def _make_web_search(config: Mapping[str, Any]) -> Tool:
    domains = config.get("allowed_domains")
    return WebSearchTool(
        search_context_size=config.get("search_context_size", "medium"),
        filters=cast("Any", {"allowed_domains": list(domains)}) if domains else None,
    )


def _make_file_search(config: Mapping[str, Any]) -> Tool:
    return FileSearchTool(
        vector_store_ids=list(config["vector_store_ids"]), max_num_results=config.get("max_num_results")
    )


def _make_code_interpreter(config: Mapping[str, Any]) -> Tool:
    container: dict[str, Any] = {"type": "auto"}
    if "file_ids" in config:
        container["file_ids"] = list(config["file_ids"])
    if "memory_limit" in config:
        container["memory_limit"] = config["memory_limit"]
    return CodeInterpreterTool(tool_config=cast("Any", {"type": "code_interpreter", "container": container}))


_HOSTED: dict[str, Callable[[Mapping[str, Any]], Tool]] = {
    "web_search": _make_web_search,
    "file_search": _make_file_search,
    "code_interpreter": _make_code_interpreter,
}
