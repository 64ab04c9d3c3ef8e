"""The provider's events, and some of the SDK's, as events of the run."""

import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any, cast
from uuid import UUID

from agents import AgentUpdatedStreamEvent, RunItemStreamEvent, StreamEvent

from app.agents._shared.tools import IMAGE_TOOL
from app.db import now
from app.error_codes import ErrorCode
from app.event_log import Record
from app.provider.errors import image_failed
from app.runs.events import (
    AgentChanged,
    Event,
    MessageStarted,
    ReasoningDelta,
    TextDelta,
    ToolCompleted,
    ToolProgress,
    ToolStarted,
)
from app.worker.event_writer import EventWriter
from app.worker.images import RunImages
from app.worker.link_filter import LinkFilter
from app.worker.message_text import MessageText, cut

HANDOFF_PREFIX = "transfer_to_"
MAX_NAME_CHARACTERS = 100
# Tools that run at the provider: the type of its items -> the tool's key in a spec.
HOSTED = {
    "image_generation_call": IMAGE_TOOL,
    "web_search_call": "web_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
}
MESSAGE_STARTED = str(MessageStarted.model_fields["type"].default)
TEXT_DELTAS = ("response.output_text.delta", "response.refusal.delta")
# Not "completed": previews are still on their way then.
PROGRESS = ("in_progress", "generating", "searching", "interpreting")


class Translator:
    """Emits the events of the agent's answer, and keeps its text.

    The key of an event names the provider's event behind it: an attempt that resumes a response receives the same
    events again, and the writer drops the keys that it has. `written` are the events of earlier attempts, `resumed` is
    the response that this attempt resumes.
    """

    def __init__(
        self, events: EventWriter, images: RunImages, message_id: UUID, written: Sequence[Record], resumed: str | None
    ) -> None:
        self._events = events
        self._images = images
        self._message_id = message_id
        self._agent_key: str | None = None
        self._source, self._source_count, self._response_id = "", 0, ""
        self._tools, self._failed = dict[str, str](), set[str]()
        self.message = MessageText()
        self._reasoning_links = LinkFilter()
        # Calls of tools that the agent does not have.
        self.unknown_calls: set[str] = set()
        self._drew_before = False
        self.first_output_at: datetime | None = None
        self._restore([record for record in written if not (resumed and record.key.startswith(f"{resumed}:"))])

    def _restore(self, earlier: Sequence[Record]) -> None:
        for record in earlier:
            if record.type == TextDelta.model_fields["type"].default:
                self.message.restore(json.loads(record.data)["delta"])
            elif record.type == ToolStarted.model_fields["type"].default:
                data = json.loads(record.data)
                if data["name"] == IMAGE_TOOL:
                    self._drew_before = True
                    self.message.place_image(data["tool_call_id"])

    @property
    def is_empty(self) -> bool:
        """Whether the agent has said nothing, and has not even begun an image."""
        drew = self._drew_before or IMAGE_TOOL in self._tools.values() or self._images.received
        return not drew and not str(self.message).strip()

    def handle(self, event: StreamEvent) -> None:
        """What the SDK did between two responses; the provider's events have come before."""
        match event:
            case RunItemStreamEvent(name="tool_output"):
                self._tool_output(cast(Any, event.item).raw_item)
            case AgentUpdatedStreamEvent():
                self._agent_changed(event.new_agent.name)
            case _:
                pass

    def start_message(self) -> None:
        if not self._events.has(MESSAGE_STARTED):
            self._events.emit(MessageStarted(message_id=self._message_id))

    def emit_missing(self, *, forced: bool) -> None:
        """At the end of a completed turn: fail images that were begun, or `forced`, and of which nothing came."""
        begun = [call_id for call_id, name in self._tools.items() if name == IMAGE_TOOL]
        for call_id in begun:
            if call_id not in self._images.received and call_id not in self._failed:
                detail = "The provider began this image and never sent it: try again."
                self._images.reports.failed(call_id, ErrorCode.IMAGE_MISSING, detail, retryable=True)
        if forced and not begun and not self._drew_before:
            detail = "An image was requested, but the model answered without drawing one; its text may say why."
            self._images.reports.failed(None, ErrorCode.IMAGE_NOT_DRAWN, detail, retryable=True)

    def _follow(self, event: Any) -> None:
        """Keys of what is emitted from here on name this event of the provider."""
        if event.type == "response.created":
            self._response_id = event.response.id
        source = f"{self._response_id}:{getattr(event, 'sequence_number', None) or 0}"
        if source != self._source:
            self._source, self._source_count = source, 0

    def _emit(self, event: Event) -> None:
        self._source_count += 1
        self._events.emit(event, f"{self._source}:{self._source_count}")

    def on_event(self, event: Any) -> None:
        """An event of the provider."""
        self._follow(event)
        kind = str(event.type)
        if kind in TEXT_DELTAS:
            self._text(event.item_id, event.delta)
        elif kind == "response.reasoning_summary_text.delta":
            self._emit_reasoning(self._reasoning_links.feed(event.delta))
        elif kind == "response.reasoning_summary_text.done":
            self._emit_reasoning(self._reasoning_links.finish())
        elif kind == "response.output_item.added":
            self._item_added(event.item)
        elif kind == "response.output_item.done":
            self._item_done(event.item)
        elif getattr(event, "item_id", None) in self._tools and (status := kind.rpartition(".")[2]) in PROGRESS:
            call_id = event.item_id
            self._emit(ToolProgress(tool_call_id=call_id, name=self._tools[call_id], status=status))

    def _text(self, item_id: str, delta: str) -> None:
        self.start_message()
        self._emit_text(self.message.add(item_id, delta))

    def finish_text(self) -> None:
        """At the end of an item's text: emit what was held back."""
        self._emit_text(self.message.finish())

    def _emit_text(self, pieces: Sequence[str]) -> None:
        for piece in pieces:
            self._emit(TextDelta(message_id=self._message_id, delta=piece))

    def _emit_reasoning(self, delta: str) -> None:
        for piece in cut(delta):
            self._emit(ReasoningDelta(delta=piece))

    def _item_added(self, item: Any) -> None:
        self.first_output_at = self.first_output_at or now()
        if item.type == "message":
            self.start_message()
        elif item.type in HOSTED:
            self._start_tool(item.id, HOSTED[item.type])
        elif item.type == "function_call" and not item.name.startswith(HANDOFF_PREFIX):
            # The model may have made the name up, as long as it likes.
            self._start_tool(item.call_id, item.name[:MAX_NAME_CHARACTERS])

    def _item_done(self, item: Any) -> None:
        if item.type in HOSTED:
            self._finish_tool(item.id, HOSTED[item.type], failed=item.status == "failed")
            if item.type == "image_generation_call" and item.status == "failed":
                self._image_failed(item)
        elif item.type == "message":
            if not self.message.has(item.id):
                # Some streams bring a message without deltas.
                text = "".join(getattr(part, "text", None) or getattr(part, "refusal", "") for part in item.content)
                self._text(item.id, text)
            self.finish_text()

    def _start_tool(self, call_id: str, name: str) -> None:
        if call_id not in self._tools:
            self._tools[call_id] = name
            if name == IMAGE_TOOL:
                self.message.place_image(call_id)
            self._emit(ToolStarted(tool_call_id=call_id, name=name, status="in_progress"))

    def _finish_tool(self, call_id: str, name: str, *, failed: bool) -> None:
        self._start_tool(call_id, name)
        self._emit(ToolCompleted(tool_call_id=call_id, name=name, status="failed" if failed else "completed"))

    def _tool_output(self, raw: Any) -> None:
        call_id = str(cast(dict[str, Any], raw)["call_id"] if isinstance(raw, dict) else raw.call_id)
        if call_id in self._tools:
            self._finish_tool(call_id, self._tools[call_id], failed=call_id in self.unknown_calls)

    def _image_failed(self, item: Any) -> None:
        self._failed.add(item.id)
        found = image_failed(getattr(item, "error", None))
        fail = partial(self._images.reports.failed, item.id, found.code, found.message, retryable=found.retryable)
        self._images.previews.then(item.id, fail)

    def _agent_changed(self, agent_key: str) -> None:
        if self._agent_key is not None and self._agent_key != agent_key:
            self._emit(AgentChanged(agent_key=agent_key))
        self._agent_key = agent_key
