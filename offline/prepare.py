"""A request, checked and understood: everything that can be refused is refused here."""

from dataclasses import dataclass
from pathlib import Path

from offline.conversation import Conversation, read_conversation, read_picture
from offline.directives import refuse_on_request
from offline.options import ImageOptions, check_request, check_tool_choice, parse_image_tool
from offline.script import Plan, decide
from offline.wire import Json, Refused, as_objects


@dataclass(frozen=True)
class Ready:
    body: Json
    said: Conversation
    plan: Plan
    options: ImageOptions | None


def prepare(body: Json, root: Path) -> Ready:
    """Check everything and decide what will be answered; raises Refused. Reads files: run it in a thread."""
    check_request(body)
    tools = as_objects(body.get("tools"))
    options = None
    for index, tool in enumerate(tools):
        if tool.get("type") == "image_generation":
            options = parse_image_tool(tool, index)
    check_tool_choice(body.get("tool_choice"), tools)
    said = read_conversation(body, root)
    refuse_on_request(said.directives, body["model"], stream=bool(body.get("stream")))
    if "needs_reasoning" in said.directives and said.named:
        lacking = f"rs_{said.named.removeprefix('ig_')}"
        message = (
            f"Item '{said.named}' of type 'image_generation_call' was provided without its required 'reasoning' item"
        )
        raise Refused(f"{message}: '{lacking}'.", param="input")
    mask = read_picture(options.mask, "input_image_mask", root) if options and options.mask else None
    return Ready(body, said, decide(body, said, options, mask), options)
