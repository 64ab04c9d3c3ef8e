"""Decides what "the model" does with a request: draw, call a function, or just say something."""

import io
import json
import re
from dataclasses import dataclass
from typing import Any, cast

from PIL import Image

from offline.conversation import Conversation
from offline.drawing.painter import Order
from offline.options import ImageOptions, size_of
from offline.wire import Json, as_object, as_objects, image_error, word_set

_DRAWS = word_set(
    "draw drawing paint painting picture pictures image images illustration illustrate logo icon sketch render photo "
    "photograph poster sticker wallpaper portrait artwork cartoon banner avatar generate design"
)
_DRAW_VERBS = word_set("draw paint sketch illustrate render")
_SUBJECTS = word_set("cat dog otter fox bear panda owl robot house castle landscape sunset axolotl")
_CHANGES = word_set(
    "make change edit now turn add remove replace recolor recolour color colour tint brighten darken crop mirror flip "
    "bigger smaller more less again another instead realistic put give redo without combine merge"
)
_GREETING = re.compile(r"^(hi|hello|hey|thanks|thank you|good (morning|evening|day)|bye)\b", re.IGNORECASE)
_QUESTION = re.compile(r"^(what|who|whom|whose|why|how|when|where|which|is|are|do|does|did|was|were)\b", re.IGNORECASE)
_TALK = re.compile(r"^(tell|explain|describe|write|list|say|repeat|summari[sz]e|translate|count)\b", re.IGNORECASE)
_REMEMBER = re.compile(r"\b(before|earlier|remember|previous|previously|so far|first)\b", re.IGNORECASE)
_TWO = re.compile(
    r"\b(draw|paint|sketch|generate|make)\s+(two|2)\b|\b(two|2)\s+(\w+\s+)?(pictures|images|drawings)\b", re.IGNORECASE
)
_HAND_OVER = re.compile(r"\b(?:hand (?:me |it )?over|transfer|switch)(?: me| it)? to (?:the )?([\w -]+)", re.IGNORECASE)
_COMMON = word_set("get set the current find run call make new show list fetch transfer for and with")


@dataclass(frozen=True)
class Drawing:
    order: Order
    action: str
    quality: str
    size: str
    model: str
    revised_prompt: str


@dataclass(frozen=True)
class Call:
    name: str
    arguments: str


@dataclass(frozen=True)
class Plan:
    """In this order: calls (and then nothing else), or drawings and then words."""

    calls: tuple[Call, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    text: str | None = None


def decide(body: Json, said: Conversation, options: ImageOptions | None, mask: bytes | None) -> Plan:
    tools = as_objects(body.get("tools"))
    functions = [tool for tool in tools if tool.get("type") == "function"]
    wants = _wants_picture(body, said, options, alone=len(tools) == 1)
    if call := _call(body, said, functions, wants_picture=wants or _asks_to_draw(said), can_draw=options is not None):
        return Plan(calls=(call,))
    if options is None or not wants:
        return Plan(text=_answer(said))
    drawings = _drawings(said, options, mask)
    if "no_text" in said.directives:
        return Plan(drawings=drawings)
    return Plan(drawings=drawings, text=_about(said, drawings))


def _wants_picture(body: Json, said: Conversation, options: ImageOptions | None, *, alone: bool) -> bool:
    choice = body.get("tool_choice")
    if options is None or choice == "none" or "text_only" in said.directives or "refusal" in said.directives:
        return False
    if as_object(choice).get("type") == "image_generation" or (choice == "required" and alone):
        return True
    if as_object(choice).get("type") == "function":
        return False
    if _asks_to_draw(said) or "two" in said.directives:
        return True
    chatting = _GREETING.match(said.text) or _QUESTION.match(said.text) or _TALK.match(said.text)
    changes = bool(said.sources) and bool(_CHANGES & word_set(said.text))
    return bool(said.text) and not chatting and (alone or changes or said.brought)


def _asks_to_draw(said: Conversation) -> bool:
    if _QUESTION.match(said.text) or _GREETING.match(said.text):
        return False
    words = word_set(said.text)
    return bool(words & (_DRAW_VERBS if _TALK.match(said.text) else _DRAWS | _SUBJECTS))


def _call(body: Json, said: Conversation, tools: list[Json], *, wants_picture: bool, can_draw: bool) -> Call | None:
    """The function to call, once a turn: forced, handed over to, or named by a word of the text."""
    if "call" in said.directives and not said.outputs:
        return Call(said.directives.text("call"), "{}")
    forced = as_object(body.get("tool_choice"))
    done = {name for name, _ in said.outputs}
    offered = [tool for tool in tools if tool.get("name") not in done and body.get("tool_choice") != "none"]
    hand_over = _HAND_OVER.search(said.text)
    for tool in offered:
        name = str(tool.get("name"))
        words = word_set(name.replace("_", " ")) - _COMMON
        if name.startswith("transfer_to_"):
            if said.outputs and not hand_over:
                continue
            named = hand_over and words & word_set(hand_over[1])
            if named or (wants_picture and not can_draw and _is_artist(name, offered)):
                return Call(name, "{}")
        elif forced.get("name") == name or words & word_set(said.text):
            return Call(name, json.dumps(_arguments(tool, said.text)))
    if body.get("tool_choice") == "required" and offered and not said.outputs and not wants_picture:
        return Call(str(offered[0].get("name")), json.dumps(_arguments(offered[0], said.text)))
    return None


def _is_artist(name: str, offered: list[Json]) -> bool:
    """Whether drawing is that agent's trade; the first agent is asked when none sounds like it."""
    trades = ("design", "draw", "art", "illustrat", "image", "paint", "picture")
    names = [str(tool.get("name")) for tool in offered if str(tool.get("name")).startswith("transfer_to_")]
    artists = [other for other in names if any(trade in other for trade in trades)]
    return name == (artists or names)[0]


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


def _drawings(said: Conversation, options: ImageOptions, mask: bytes | None) -> tuple[Drawing, ...]:
    edits = options.action == "edit" or (options.action == "auto" and _edits(said))
    if options.action == "edit" and not said.sources:
        raise image_error("The action 'edit' needs an image in the context.", param="action")
    if mask:
        _check_mask(mask, said.sources)
    number = 2 if "two" in said.directives or _TWO.search(said.text) else 1
    sources = tuple(said.sources[:16]) if edits or mask else ()
    return tuple(_drawing(said, options, sources, mask, index) for index in range(number))


def _edits(said: Conversation) -> bool:
    """A picture at hand is changed, unless it is an old one and the text asks for something new."""
    new = re.match(r"(please )?(draw|paint|sketch|generate|create)\b", said.text, re.IGNORECASE)
    return bool(said.sources) and (said.brought or not new)


def _drawing(
    said: Conversation, options: ImageOptions, sources: tuple[bytes, ...], mask: bytes | None, index: int
) -> Drawing:
    words = word_set(said.text)
    size = options.size if options.size != "auto" else _auto_size(words, sources, index)
    quality = "high" if options.quality == "auto" else options.quality
    background = options.background
    if background == "auto":
        cut_out = bool(words & {"transparent", "sticker"}) and options.output_format in ("png", "webp")
        background = "transparent" if cut_out else "opaque"
    prompt = said.text if index == 0 else f"{said.text} (another one)"
    order = Order(
        prompt=prompt or "a picture",
        pixels=size_of(size),
        quality=quality,
        background=background,
        output_format=options.output_format,
        compression=options.output_compression,
        previews=options.partial_images,
        frame_count=options.frame_count,
        frame_duration_ms=options.frame_duration_ms,
        sources=sources,
        mask=mask,
    )
    action = "edit" if sources else "generate"
    revised = _revised(prompt, action) + "\0" * ("nul" in said.directives)
    return Drawing(order, action, quality, size, options.model, revised)


def _auto_size(words: frozenset[str], sources: tuple[bytes, ...], index: int) -> str:
    if sources:
        with Image.open(io.BytesIO(sources[0])) as image:
            ratio = image.width / image.height
    else:
        wide = words & {"wide", "landscape", "panorama", "banner", "horizontal", "sea", "mountains"}
        ratio = 1.5 if wide else 0.66 if words & {"tall", "portrait", "poster", "vertical", "phone"} else 1
    if index and 0.8 <= ratio <= 1.25:
        return "1536x1024"
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
    lead = "Edit the given picture: " if action == "edit" else "A friendly flat illustration: "
    return f"{lead}{prompt.rstrip('.')}. Soft colours, round shapes, gentle light. (Drawn by the offline provider.)"


def _about(said: Conversation, drawings: tuple[Drawing, ...]) -> str:
    what = "the changed picture" if drawings[0].action == "edit" else f"{len(drawings)} pictures" * (len(drawings) > 1)
    heard = f"{_heard(said)} ".lstrip()
    sizes = " and ".join(dict.fromkeys(drawing.size for drawing in drawings))
    verb = "are" if len(drawings) > 1 else "is"
    told = f'{heard}Here {verb} {what or "your picture"} for "{_short(said.text)}" ({sizes}).'
    return _sized(said, f"{told} It was drawn by Easel's offline provider: no model was asked.")


def _answer(said: Conversation) -> str:
    if heard := _heard(said):
        return _sized(said, f"{heard} (Easel's offline provider: no model was asked.)")
    told = f'You said: "{_short(said.text)}".' if said.text else "You said nothing I can read."
    if len(said.texts) > 1 and _REMEMBER.search(said.text):
        told += " Before that you said: " + "; ".join(f'"{_short(text)}"' for text in said.texts[-6:-1]) + "."
    if said.sources:
        told += " There is a picture in this conversation; ask me to change it."
    return _sized(
        said, f"{told} This is Easel's offline provider: no model was asked. Set OPENAI_API_KEY for real answers."
    )


def _heard(said: Conversation) -> str:
    """What the tools answered; a hand-over answers nothing."""
    told = [(name, output) for name, output in said.outputs if not name.startswith("transfer_to_")]
    return " ".join(f"{name} says: {output}." for name, output in told)


def _sized(said: Conversation, text: str) -> str:
    if "nul" in said.directives:
        text += "\0"
    if "words" not in said.directives:
        return text
    words = text.split()
    return " ".join(words[index % len(words)] for index in range(int(said.directives.number("words", 50))))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
