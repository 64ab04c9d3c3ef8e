"""A request, checked and understood: everything that can be rejected is rejected here."""

from dataclasses import dataclass
from pathlib import Path

from offline.conversation import Conversation, read_conversation, read_image
from offline.decide import Plan, decide
from offline.directives import raise_requested_error
from offline.models import check_model
from offline.options import ImageOptions, check_request, check_tool_choice, parse_image_tool
from offline.wire import ApiError, Json, as_objects


@dataclass(frozen=True)
class ParsedRequest:
    body: Json
    conversation: Conversation
    plan: Plan
    options: ImageOptions | None


def parse_request(body: Json, root: Path) -> ParsedRequest:
    """Check everything and decide what will be answered; raises ApiError. Reads files: run it in a thread."""
    check_request(body)
    check_model(body["model"])
    tools = as_objects(body.get("tools"))
    options = None
    for index, tool in enumerate(tools):
        if tool.get("type") == "image_generation":
            options = parse_image_tool(tool, index)
    check_tool_choice(body.get("tool_choice"), tools)
    conversation = read_conversation(body, root)
    raise_requested_error(conversation.directives, body["model"], stream=bool(body.get("stream")))
    if "needs_reasoning" in conversation.directives and conversation.named:
        name, missing = conversation.named, f"rs_{conversation.named.removeprefix('ig_')}"
        message = f"Item '{name}' of type 'image_generation_call' was provided without its required 'reasoning' item"
        raise ApiError(f"{message}: '{missing}'.", param="input")
    mask = read_image(options.mask, "input_image_mask", root) if options and options.mask else None
    return ParsedRequest(body, conversation, decide(body, conversation, options, mask), options)
