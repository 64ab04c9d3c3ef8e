"""What a run's log says that its attempts before this one have told, so that nothing is told twice."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from app.broker import Record


@dataclass
class Told:
    """`text` and `message_started` are of responses before `response_id`, `counts` of that one.

    `counts` goes by the sequence number of the provider's event that each event of ours came from. `announced` and
    `previews` are pictures, which tell of themselves at moments of their own, `failed` those that could not be kept,
    with the code of the reason; `drew` says that a picture was begun in a response before.
    """

    seq: int = 0
    response_id: str | None = None
    text: str = ""
    message_started: bool = False
    counts: Counter[int] = field(default_factory=Counter[int])
    announced: set[str] = field(default_factory=set[str])
    previews: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    failed: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    drew: bool = False


def read(records: Iterable[Record], response_id: str | None) -> Told:
    """`response_id` is the response that this attempt goes on with."""
    told = Told(response_id=response_id)
    for record in records:
        told.seq = record.seq
        source, _, number = record.mark.rpartition(":")
        if source and source == response_id:
            told.counts[int(number)] += 1
        elif record.type in ("image.partial", "attachment.created", "attachment.failed"):
            _read_picture(told, record.type, json.loads(record.data))
        elif record.type == "tool.started":
            told.drew = told.drew or json.loads(record.data)["name"] == "image_generation"
        elif record.type == "text.delta":
            told.text += json.loads(record.data)["delta"]
        elif record.type == "message.started":
            told.message_started = True
    return told


def _read_picture(told: Told, kind: str, event: dict[str, Any]) -> None:
    if kind == "image.partial":
        told.previews.add((event["tool_call_id"], event["index"]))
    elif kind == "attachment.created":
        told.announced.add(event["attachment"]["tool_call_id"])
    else:
        told.failed.add((event["tool_call_id"], event["code"]))


class Teller:
    """Emits what the translator says under the mark of the provider's event behind it, but for what was told before."""

    def __init__(self, emit: Callable[..., None], told: Told) -> None:
        self._emit = emit
        self._told = told
        self._response_id: str | None = None
        self._sequence_number = 0
        self._left_out: Counter[int] = Counter()

    def follow(self, event: Any) -> None:
        """The provider's event that is handled next."""
        if event.type == "response.created":
            self._response_id = event.response.id
        self._sequence_number = getattr(event, "sequence_number", None) or 0

    def __call__(self, kind: str, **fields: Any) -> None:
        number = self._sequence_number
        if self._response_id == self._told.response_id and self._left_out[number] < self._told.counts[number]:
            self._left_out[number] += 1
            return
        self._emit(kind, mark=f"{self._response_id}:{number}" if self._response_id else "", **fields)
