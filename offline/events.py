"""A whole response: its object, and its events from `response.created` to the last one."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator

from offline.items import Output, function_call, image_call, message, reasoning, refusal
from offline.options import ImageOptions
from offline.request import ParsedRequest
from offline.usage import image_usage, text_usage
from offline.wire import Json, as_object, as_objects, new_id

# What is repeated from the request as it came, else with these values.
_REPEATED: Json = {
    "background": False,
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "moderation": None,
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. "
    "(Easel's offline simulator, on request.)"
)
_BROKEN = "The server had an error while processing your request. (Easel's offline simulator, on request.)"
TERMINAL = ("response.completed", "response.failed", "response.incomplete")


def new_response(body: Json, image_options: ImageOptions | None) -> Json:
    """The response object as `response.created` shows it."""
    repeated = {key: default if body.get(key) is None else body[key] for key, default in _REPEATED.items()}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "queued" if repeated["background"] else "in_progress",
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": body["model"],
        "output": [],
        "reasoning": {"context": None, "effort": None, "summary": None, **as_object(body.get("reasoning"))},
        "service_tier": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium", **as_object(body.get("text"))},
        "tool_usage": _tool_usage(image_usage([])),
        "tools": [_echo(tool, image_options) for tool in as_objects(body.get("tools"))],
        "usage": None,
        **repeated,
    }


async def response_events(response: Json, request: ParsedRequest, out: Output) -> AsyncIterator[Json]:
    """The events, without sequence numbers; `response` and `out` follow them and are up to date at each one."""
    response["output"] = out.items
    response["model"] = out.directives.text("answers_as") or response["model"]
    yield _about(response, "created")
    if response["background"]:
        yield _about(response, "queued")
        await asyncio.sleep(0.05 / out.speed)
    response["status"] = "in_progress"
    if "stall" in out.directives:
        await asyncio.Event().wait()
    yield _about(response, "in_progress")
    if failure := _failure(out):
        async for event in failure(response):
            yield event
        return
    async for event in _output(response, request, out):
        yield event
    if out.directives.text("failed") == "late":
        async for event in _fail(response):
            yield event
        return
    _finish(response, request, out)
    yield _about(response, response["status"])


async def _output(response: Json, request: ParsedRequest, out: Output) -> AsyncIterator[Json]:
    for part in _parts(response, request, out):
        async for event in part:
            yield event


def _parts(response: Json, request: ParsedRequest, out: Output) -> Iterator[AsyncIterator[Json]]:
    plan, summary = request.plan, bool(response["reasoning"].get("summary"))
    if plan.drawings or plan.call or summary:
        encrypted = "reasoning.encrypted_content" in (request.body.get("include") or [])
        yield reasoning(out, encrypted=encrypted, summary=summary)
    if plan.call:
        yield function_call(out, plan.call)
    yield from (image_call(out, drawing) for drawing in plan.drawings)
    if "refusal" in out.directives:
        yield refusal(out)
    elif plan.text is not None:
        yield message(out, plan.text, half="incomplete" in out.directives)


def _finish(response: Json, request: ParsedRequest, out: Output) -> None:
    cut_short = "incomplete" in out.directives
    response["status"] = "incomplete" if cut_short else "completed"
    response["incomplete_details"] = {"reason": "max_output_tokens"} if cut_short else None
    response["completed_at"] = None if cut_short else int(time.time())
    response["service_tier"] = out.directives.text("tier") or "default"
    if response["service_tier"] == "none":
        del response["service_tier"]
    response["usage"] = text_usage(
        [str(response["instructions"] or ""), *request.conversation.texts], request.plan.text, out.directives
    )
    response["tool_usage"] = _tool_usage(image_usage(out.drawn), searches=int(out.directives.number("searches", 0)))
    left_out = out.directives.text("no_usage")
    if "no_usage" in out.directives and left_out != "cache_write":
        del response["tool_usage"]
    if left_out == "all":
        response["usage"] = None


def _failure(out: Output) -> Callable[[Json], AsyncIterator[Json]] | None:
    if "quota" in out.directives:
        return _run_out
    if "error_event" in out.directives:
        return _error_only
    if "failed" in out.directives and out.directives.text("failed") != "late":
        return _fail
    return None


async def _run_out(response: Json) -> AsyncIterator[Json]:
    error = {"code": "insufficient_quota", "message": _QUOTA}
    yield {"type": "error", "error": {"type": "insufficient_quota", **error, "param": None}}
    response |= {"status": "failed", "error": error}
    yield _about(response, "failed")


async def _error_only(response: Json) -> AsyncIterator[Json]:
    error = {"code": "server_error", "message": _BROKEN}
    response |= {"status": "failed", "error": error}
    yield {"type": "error", "error": {"type": "server_error", **error, "param": None}}


async def _fail(response: Json) -> AsyncIterator[Json]:
    response |= {"status": "failed", "error": {"code": "server_error", "message": _BROKEN}}
    yield _about(response, "failed")


def _about(response: Json, kind: str) -> Json:
    return {"type": f"response.{kind}", "response": response}


def _tool_usage(image_gen: Json, *, searches: int = 0) -> Json:
    return {"image_gen": image_gen, "web_search": {"num_requests": searches}}


def _echo(tool: Json, image_options: ImageOptions | None) -> Json:
    if tool.get("type") == "image_generation" and image_options:
        return image_options.echo(tool)
    if tool.get("type") == "function":
        return {"description": None, "strict": True, **tool}
    return tool
