"""Decides what "the model" does with a request: draw, call a function, or just say something."""

import io
import json
import re
from dataclasses import dataclass, replace
from typing import Any, cast

from PIL import Image

from offline.conversation import Conversation
from offline.drawing.painter import ImageSpec
from offline.options import ImageOptions, size_of
from offline.wire import Json, as_object, as_objects, image_error

# What is answered without an image, and what is drawn where other tools are offered as well: directives say the rest.
_CHAT = re.compile(
    r"(hi|hello|hey|thanks?|good|bye|what|who|whose|why|how|when|where|which|is|are|do|does|did|was|were|"
    r"tell|explain|describe|write|list|say|repeat|translate|count)\b",
    re.IGNORECASE,
)
_DRAW = re.compile(r"\b(draw|paint|sketch|illustrate|image|image|make|change|turn|add|remove)\b", re.IGNORECASE)
_NEW = re.compile(r"(please )?(draw|paint|sketch|generate|create)\b", re.IGNORECASE)
_REMEMBER = re.compile(r"\b(before|earlier|last|remember|previous|so far|first)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Drawing:
    spec: ImageSpec
    action: str
    quality: str
    size: str
    model: str
    revised_prompt: str
    number: int = 0  # of an image among many that look alike


@dataclass(frozen=True)
class Call:
    name: str
    arguments: str


@dataclass(frozen=True)
class Plan:
    """Either a call and nothing else, or drawings and then text."""

    call: Call | None = None
    drawings: tuple[Drawing, ...] = ()
    text: str | None = None


def decide(body: Json, conversation: Conversation, options: ImageOptions | None, mask: bytes | None) -> Plan:
    if "empty" in conversation.directives:
        return Plan()
    tools = as_objects(body.get("tools"))
    draws = options is not None and _draws(body.get("tool_choice"), conversation, alone=len(tools) == 1)
    if not draws and (call := _call(body.get("tool_choice"), conversation, tools)):
        return Plan(call=call)
    if options is None or not draws:
        return Plan(text=_answer(conversation))
    drawings = _drawings(conversation, options, mask)
    text = None if "no_text" in conversation.directives else _caption(conversation, drawings)
    return Plan(drawings=drawings, text=text)


def _draws(choice: Any, conversation: Conversation, *, alone: bool) -> bool:
    """Whether the image tool is used, which is offered; `alone`: it is the only tool."""
    directives, text = conversation.directives, conversation.text
    if choice == "none" or "text_only" in directives or "refusal" in directives:
        return False
    if "call" in directives and not conversation.outputs:
        return False
    if as_object(choice).get("type") == "image_generation" or (choice == "required" and alone):
        return True
    if as_object(choice).get("type") == "function" or not text or _CHAT.match(text):
        return False
    return (
        alone or conversation.brought or "two" in directives or "images" in directives or _DRAW.search(text) is not None
    )


def _call(choice: Any, conversation: Conversation, tools: list[Json]) -> Call | None:
    """The function that a directive names or `tool_choice` forces, once a turn."""
    if conversation.outputs or choice == "none":
        return None
    offered = [tool for tool in tools if tool.get("type") == "function"]
    named = conversation.directives.text("call") or as_object(choice).get("name")
    called = next((tool for tool in offered if tool.get("name") == named), {"name": named} if named else None)
    if called is None and choice == "required":
        called = next(iter(offered), None)
    return Call(str(called["name"]), json.dumps(_arguments(called, conversation.text))) if called else None


def _arguments(tool: Json, text: str) -> Json:
    """A value for each required parameter: the text for strings, 1 for numbers."""
    schema = as_object(tool.get("parameters"))
    required = cast(list[str], schema.get("required") or [])
    return {name: _argument(as_object(as_object(schema.get("properties")).get(name)), text) for name in required}


def _argument(field: Json, text: str) -> Any:
    if field.get("enum"):
        return field["enum"][0]
    filler: dict[str, Any] = {"integer": 1, "number": 1, "boolean": False, "array": [], "object": {}}
    return filler.get(str(field.get("type")), text)


def _drawings(conversation: Conversation, options: ImageOptions, mask: bytes | None) -> tuple[Drawing, ...]:
    # An image at hand is changed, unless it is an older one and the text asks for a new one.
    changes = bool(conversation.sources) and (conversation.brought or not _NEW.match(conversation.text))
    edits = options.action == "edit" or (options.action == "auto" and changes)
    if options.action == "edit" and not conversation.sources:
        raise image_error("The action 'edit' needs an image in the context.", param="action")
    if mask:
        _check_mask(mask, conversation.sources)
    sources = tuple(conversation.sources[:16]) if edits or mask else ()
    if "images" in conversation.directives:
        drawing = _drawing(conversation, options, sources, mask, 0)
        drawing = replace(drawing, spec=replace(drawing.spec, partials=0))
        count = int(conversation.directives.number("images", 1))
        return tuple(replace(drawing, number=number) for number in range(1, count + 1))
    number = 2 if "two" in conversation.directives else 1
    return tuple(_drawing(conversation, options, sources, mask, index) for index in range(number))


def _drawing(
    conversation: Conversation, options: ImageOptions, sources: tuple[bytes, ...], mask: bytes | None, index: int
) -> Drawing:
    size = options.size if options.size != "auto" else _auto_size(sources, index)
    quality = "high" if options.quality == "auto" else options.quality
    prompt = conversation.text if index == 0 else f"{conversation.text} (another one)"
    spec = ImageSpec(
        prompt=prompt or "an image",
        pixels=size_of(size),
        quality=quality,
        background="opaque" if options.background == "auto" else options.background,
        output_format=options.output_format,
        compression=options.output_compression,
        partials=options.partial_images,
        frame_count=options.frame_count,
        frame_duration_ms=options.frame_duration_ms,
        sources=sources,
        mask=mask,
    )
    action = "edit" if sources else "generate"
    revised = _revised(prompt, action) + "\0" * ("nul" in conversation.directives)
    return Drawing(spec, action, quality, size, options.model, revised)


def _auto_size(sources: tuple[bytes, ...], index: int) -> str:
    """Near to the first source's shape; the second image of a response is wide."""
    ratio = 1.5 if index else 1.0
    if sources:
        with Image.open(io.BytesIO(sources[0])) as image:
            ratio = image.width / image.height
    return "1536x1024" if ratio > 1.25 else "1024x1536" if ratio < 0.8 else "1024x1024"


def _check_mask(mask: bytes, sources: list[bytes]) -> None:
    if not sources:
        raise image_error("A mask needs an image to edit.", param="input_image_mask")
    with Image.open(io.BytesIO(mask)) as drawn, Image.open(io.BytesIO(sources[0])) as source:
        if not drawn.has_transparency_data:
            fault = "mask image missing alpha channel"
        elif drawn.size != source.size:
            fault = "mask size does not match image size"
        else:
            return
    message = f"Invalid mask image format - {fault}."
    raise image_error(message, param="input_image_mask", code="invalid_mask_image_format")


def _revised(prompt: str, action: str) -> str:
    lead = "Edit the given image: " if action == "edit" else "A friendly flat illustration: "
    return f"{lead}{prompt.rstrip('.')}. Soft colours, round shapes, gentle light. (Drawn by the offline simulator.)"


def _caption(conversation: Conversation, drawings: tuple[Drawing, ...]) -> str:
    many = "two images" if len(drawings) == 2 else f"{len(drawings)} images"
    what = "the changed image" if drawings[0].action == "edit" else "your image" if len(drawings) == 1 else many
    sizes = " and ".join(dict.fromkeys(drawing.size for drawing in drawings))
    verb = "are" if len(drawings) > 1 else "is"
    text = f'Here {verb} {what} for "{_short(conversation.text)}" ({sizes}).'
    text = f"{_tool_results(conversation)} {text}".lstrip()
    return _adapted(conversation, f"{text} It was drawn by Easel's offline simulator: no model was asked.")


def _answer(conversation: Conversation) -> str:
    if results := _tool_results(conversation):
        return _adapted(conversation, f"{results} (Easel's offline simulator: no model was asked.)")
    text = f'You said: "{_short(conversation.text)}".' if conversation.text else "You said nothing that I can read."
    earlier = conversation.texts[-6:-1]
    if earlier and _REMEMBER.search(conversation.text):
        text += " Before that you said: " + "; ".join(f'"{_short(said)}"' for said in earlier) + "."
    if conversation.sources:
        text += " There is an image in this conversation; ask me to change it."
    hint = "This is Easel's offline simulator: no model was asked. Set OPENAI_API_KEY for real answers."
    return _adapted(conversation, f"{text} {hint}")


def _tool_results(conversation: Conversation) -> str:
    """What the called functions returned, except hand-offs."""
    results = [result for result in conversation.outputs if not result[0].startswith("transfer_to_")]
    return " ".join(f"{name} says: {output}." for name, output in results)


def _adapted(conversation: Conversation, text: str) -> str:
    """The text as the directives `nul` and `words` ask for it."""
    if "nul" in conversation.directives:
        text += "\0"
    if "words" not in conversation.directives:
        return text
    words = text.split()
    return " ".join(words[index % len(words)] for index in range(int(conversation.directives.number("words", 50))))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
