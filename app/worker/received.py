"""What an earlier attempt has received of the call that it left, by the events and rows that it wrote."""

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from app.attachments.models import Attachment
from app.conversations.parts import BREAK
from app.event_log import Record
from app.runs.events import EVENT_CLASSES, Event, ImagePartial, ReasoningDelta, TextDelta, ToolStarted
from app.worker.open_call import OpenCall

_TELLING = (TextDelta, ReasoningDelta, ToolStarted, ImagePartial)


def recall(
    call: OpenCall,
    written: Iterable[Record],
    images: Iterable[Attachment],
    *,
    settled: Collection[str | None],
    booked: Collection[str | None],
) -> None:
    """Count it in `call`; `written` and `images` are those of the whole run.

    `settled` are the responses of the run's other calls, `booked` the tool calls whose pictures the ledger has.
    """
    told = [(kind, record) for record in written if (kind := EVENT_CLASSES.get(record.type)) in _TELLING]
    begun = (_read(record) for record in _of(ToolStarted, told) if _answer(record) in settled)
    others = {*booked, *(tool["tool_call_id"] for tool in begun)}
    for record in (*_of(TextDelta, told), *_of(ReasoningDelta, told)):
        # What stands between two texts is ours.
        if _answer(record) not in settled and (delta := _read(record)["delta"]) != BREAK:
            call.recalled_characters += len(delta)
    for partial in map(_read, _of(ImagePartial, told)):
        if partial["tool_call_id"] not in others:
            call.partials.add((partial["tool_call_id"], partial["index"]))
    for image in images:
        if image.tool_call_id is not None and image.tool_call_id not in others:
            call.add_picture(image.tool_call_id, image.options)


def _of(kind: type[Event], told: Sequence[tuple[type[Event] | None, Record]]) -> list[Record]:
    return [record for one, record in told if one is kind]


def _read(record: Record) -> dict[str, Any]:
    # By field: an earlier release may have written it.
    return json.loads(record.data)


def _answer(record: Record) -> str:
    """The response that the event is of; its key begins with it, see Translator."""
    return record.key.rsplit(":", 2)[0]
