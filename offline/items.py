"""The output items of a response, each as the events that announce, fill and finish it."""

import asyncio
import base64
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from offline.decide import Call, Drawing
from offline.directives import Directives, moderation_details
from offline.drawing.painter import Artwork, enlarge_png, other_type, paint
from offline.state import StoredImage
from offline.wire import Json, new_id

_KEEPALIVE_SECONDS = 0.3
_DRAWING_SECONDS = 0.9
_WORD_SECONDS = 0.015
_REFUSAL = "I'm sorry, I can't help with that. (Easel's offline simulator, on request.)"
_THOUGHT = "**Planning the answer**\n\nThe offline simulator does not think; it only follows the words it was given."


@dataclass
class Output:
    """What a response has produced so far; every delay is divided by `speed`."""

    items: list[Json]
    directives: Directives
    speed: float
    images: dict[str, StoredImage] = field(default_factory=dict[str, StoredImage])
    drawn: list[tuple[Drawing, int]] = field(default_factory=list[tuple[Drawing, int]])  # with partials sent

    def event(self, kind: str, item_id: str, **fields: Any) -> Json:
        return {"type": f"response.{kind}", "item_id": item_id, "output_index": len(self.items), **fields}

    def added(self, item: Json) -> Json:
        return {"type": "response.output_item.added", "output_index": len(self.items), "item": item}

    def done(self, item: Json) -> Json:
        self.items.append(item)
        return {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}


async def reasoning(out: Output, *, encrypted: bool, summary: bool) -> AsyncIterator[Json]:
    item: Json = {"id": new_id("rs"), "type": "reasoning", "summary": []}
    if encrypted:
        item["encrypted_content"] = f"offline-{secrets.token_urlsafe(48)}"
    yield out.added(dict(item))
    if summary:
        part = {"type": "summary_text", "text": ""}
        yield out.event("reasoning_summary_part.added", item["id"], summary_index=0, part=part)
        for delta in _pieces(_THOUGHT):
            yield out.event("reasoning_summary_text.delta", item["id"], summary_index=0, delta=delta)
            await asyncio.sleep(_WORD_SECONDS / out.speed)
        part = {"type": "summary_text", "text": _THOUGHT}
        yield out.event("reasoning_summary_text.done", item["id"], summary_index=0, text=_THOUGHT)
        yield out.event("reasoning_summary_part.done", item["id"], summary_index=0, part=part)
        item["summary"] = [part]
    yield out.done(item)


async def function_call(out: Output, call: Call) -> AsyncIterator[Json]:
    item: Json = {"id": new_id("fc"), "type": "function_call", "status": "in_progress", "arguments": ""}
    item |= {"call_id": f"call_{secrets.token_hex(12)}", "name": call.name}
    yield out.added(dict(item))
    for delta in _pieces(call.arguments):
        yield out.event("function_call_arguments.delta", item["id"], delta=delta)
    yield out.event("function_call_arguments.done", item["id"], arguments=call.arguments, name=call.name)
    yield out.done({**item, "status": "completed", "arguments": call.arguments})


async def message(out: Output, text: str, *, half: bool = False) -> AsyncIterator[Json]:
    """The text word by word; with `half` it breaks off in the middle."""
    pieces = _pieces(text)
    pieces = pieces[: max(1, len(pieces) // 2)] if half else pieces
    whole = "".join(pieces)
    item: Json = {"id": new_id("msg"), "type": "message", "status": "in_progress", "content": [], "role": "assistant"}
    place = {"content_index": 0}
    yield out.added(dict(item))
    yield out.event("content_part.added", item["id"], **place, part=_text_part(""))
    for delta in pieces:
        yield out.event("output_text.delta", item["id"], **place, delta=delta, logprobs=[])
        await asyncio.sleep(_WORD_SECONDS / out.speed)
    yield out.event("output_text.done", item["id"], **place, text=whole, logprobs=[])
    yield out.event("content_part.done", item["id"], **place, part=_text_part(whole))
    yield out.done({**item, "status": "incomplete" if half else "completed", "content": [_text_part(whole)]})


async def refusal(out: Output) -> AsyncIterator[Json]:
    item: Json = {"id": new_id("msg"), "type": "message", "status": "in_progress", "content": [], "role": "assistant"}
    part = {"type": "refusal", "refusal": _REFUSAL}
    place = {"content_index": 0}
    yield out.added(dict(item))
    yield out.event("content_part.added", item["id"], **place, part={**part, "refusal": ""})
    for delta in _pieces(_REFUSAL):
        yield out.event("refusal.delta", item["id"], **place, delta=delta)
        await asyncio.sleep(_WORD_SECONDS / out.speed)
    yield out.event("refusal.done", item["id"], **place, refusal=_REFUSAL)
    yield out.event("content_part.done", item["id"], **place, part=part)
    yield out.done({**item, "status": "completed", "content": [part]})


async def image_call(out: Output, drawing: Drawing) -> AsyncIterator[Json]:
    """In one of three orders: partials or none, then `completed`; or one unrequested partial and no `completed`."""
    item: Json = {"id": new_id("ig"), "type": "image_generation_call", "status": "in_progress"}
    yield out.added(item)
    yield out.event("image_generation_call.in_progress", item["id"])
    yield out.event("image_generation_call.generating", item["id"])
    if "keepalive" in out.directives:
        yield {"type": "keepalive"}
    if "moderation" in out.directives:
        yield out.done(_moderated(item, drawing, out.directives.text("moderation") or "output"))
        return
    if "image_error" in out.directives:
        yield out.done(_failed(item, drawing, out.directives.text("image_error") or "server_error"))
        return
    artwork: Artwork | None = None
    seconds = out.directives.number("slow", _DRAWING_SECONDS / out.speed)
    third = out.directives.text("order") == "3" and drawing.spec.output_format not in ("gif", "svg")
    painting = asyncio.create_task(asyncio.to_thread(_paint, drawing, out.directives))
    stages = max(1, drawing.spec.partials)
    for index in range(stages):
        async for beat in _while_drawing(painting, seconds / stages):
            yield beat
        artwork = painting.result()
        if index < len(artwork.partials) and not third:
            yield _partial(out, item["id"], drawing, index, artwork.partials[index])
    if artwork is None or "no_final" in out.directives:
        quiet = out.directives.text("no_final") == "quiet"
        yield out.done(_unfinished(item, drawing) if quiet else _failed(item, drawing, "server_error"))
        return
    if third:
        yield _partial(out, item["id"], drawing, 0, artwork.final)
    else:
        yield out.event("image_generation_call.completed", item["id"])
    out.images[item["id"]] = StoredImage(artwork.final, artwork.editable or artwork.final)
    out.drawn.append((drawing, 1 if third else drawing.spec.partials))
    yield out.done(_finished(item, drawing, artwork.final, "generating" if third else "completed"))


def _paint(drawing: Drawing, directives: Directives) -> Artwork:
    """The image, with the faults that the directives ask for; what an edit starts from stays whole."""
    artwork = paint(drawing.spec) if drawing.spec.sources else _painted(drawing.spec)
    final = artwork.final
    if drawing.number and drawing.spec.output_format == "png":
        final = enlarge_png(final, len(final) + 12 + drawing.number)
    if "big" in directives and drawing.spec.output_format == "png":
        final = enlarge_png(final, int(directives.number("big", 1) * 1024 * 1024))
    if "wrong_type" in directives:
        final = other_type(drawing.spec, artwork.editable or final)
    if "truncated" in directives:
        final = final[: len(final) // 2]
    if "not_an_image" in directives:
        final = b"This is not an image. It was sent by Easel's offline simulator on request.\n"
    if final is artwork.final:
        return artwork
    partials = (*artwork.partials[:-1], final) if artwork.partials else ()
    return Artwork(final, partials, artwork.editable or artwork.final)


# The same words give the same image: it is painted once.
_painted = lru_cache(maxsize=16)(paint)


async def _while_drawing(painting: asyncio.Task[Artwork], seconds: float) -> AsyncIterator[Json]:
    """Keepalives until the image is painted and `seconds` have passed."""
    pausing = asyncio.create_task(asyncio.sleep(seconds))
    try:
        while True:
            _, pending = await asyncio.wait({painting, pausing}, timeout=_KEEPALIVE_SECONDS)
            if not pending:
                return
            yield {"type": "keepalive"}
    finally:
        pausing.cancel()


def _partial(out: Output, item_id: str, drawing: Drawing, index: int, data: bytes) -> Json:
    return out.event(
        "image_generation_call.partial_image",
        item_id,
        partial_image_index=index,
        partial_image_b64=base64.b64encode(data).decode(),
        **_effective_options(drawing),
    )


def _finished(item: Json, drawing: Drawing, data: bytes, status: str) -> Json:
    whole = {**item, "status": status, "action": drawing.action, **_effective_options(drawing)}
    if drawing.spec.output_format == "svg":
        usage = {"input_tokens": 40, "output_tokens": len(data) // 4, "reasoning_tokens": 0}
        whole["svg_usage"] = {"model": "offline", **usage, "total_tokens": 40 + len(data) // 4}
    return {**whole, "result": base64.b64encode(data).decode(), "revised_prompt": drawing.revised_prompt}


def _moderated(item: Json, drawing: Drawing, stage: str) -> Json:
    failed = _failed(item, drawing, "moderation_blocked", "Your request was rejected by the safety system.")
    failed["error"] |= moderation_details(stage)
    return failed


def _failed(item: Json, drawing: Drawing, code: str, message: str = "The image could not be made.") -> Json:
    kind = "server_error" if code == "server_error" else "image_generation_user_error"
    error = {"type": kind, "code": code, "param": None, "message": f"{message} (offline simulator, on request)"}
    return {**_unfinished(item, drawing), "status": "failed", "error": error}


def _unfinished(item: Json, drawing: Drawing) -> Json:
    return {**item, "status": "generating", "action": drawing.action, **_effective_options(drawing), "result": None}


def _effective_options(drawing: Drawing) -> Json:
    spec = drawing.spec
    shown = {"background": spec.background, "output_format": spec.output_format}
    return {**shown, "quality": drawing.quality, "size": drawing.size}


def _text_part(text: str) -> Json:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)
