"""A request, checked and understood: everything that can be refused is refused here."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from app.offline.conversation import Conversation, read_conversation
from app.offline.directives import refuse_on_request
from app.offline.options import ImageOptions, check_request, check_tool_choice, parse_image_tool
from app.offline.script import Plan, decide
from app.offline.wire import Json, as_object, as_objects

_SHOWN_LETTERS = 200
_BASE64 = re.compile(r"(data:[\w/+.-]+;base64,)?[A-Za-z0-9+/=_-]+")


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
    return Ready(body, said, decide(body, said, options), options)


def abbreviated(value: Any) -> Any:
    """The same JSON with long base64 replaced by its length."""
    if isinstance(value, dict):
        return {key: abbreviated(item) for key, item in as_object(cast(object, value)).items()}
    if isinstance(value, list):
        return [abbreviated(item) for item in cast(list[Any], value)]
    if isinstance(value, str) and len(value) > _SHOWN_LETTERS and _BASE64.fullmatch(value):
        return f"<{len(value)} chars>"
    return value
