"""The SDK's stream events, told as ours."""

from collections.abc import Container
from typing import Any, Protocol, cast

from agents import AgentUpdatedStreamEvent, RawResponsesStreamEvent, RunItemStreamEvent, StreamEvent

from app.agents._shared.tools import IMAGE_TOOL
from app.runs.log import MAX_DELTA_CHARACTERS
from app.runs.told import Told

HANDOFF_PREFIX = "transfer_to_"
# Tools that the provider runs itself: its item type -> the tool's key with us.
HOSTED = {
    "image_generation_call": IMAGE_TOOL,
    "web_search_call": "web_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
}
TEXT_DELTAS = ("response.output_text.delta", "response.refusal.delta")


class Emit(Protocol):
    def __call__(self, kind: str, **fields: Any) -> None: ...


class Translator:
    """Keeps what the message says so far; emits one of our events for each of the SDK's that means something."""

    def __init__(self, emit: Emit, *, message_id: str, told: Told) -> None:
        self.agent_key: str | None = None
        self._emit = emit
        self._message_id = message_id
        self._parts: dict[str, list[str]] = {"": [told.text]} if told.text else {}
        self._message_started = told.message_started
        self._drew_before = told.drew
        self._tools: dict[str, str] = {}
        self._failed: set[str] = set()

    @property
    def text(self) -> str:
        """What was said, a blank line between the parts of different turns."""
        return "\n\n".join(text for part in self._parts.values() if (text := "".join(part)))

    def handle(self, event: StreamEvent) -> None:
        match event:
            case RawResponsesStreamEvent():
                self._raw(event.data)
            case RunItemStreamEvent(name="tool_output"):
                self._tool_output(cast(Any, event.item).raw_item)
            case AgentUpdatedStreamEvent():
                self._agent_changed(event.new_agent.name)
            case _:
                pass

    def start_message(self) -> None:
        if not self._message_started:
            self._message_started = True
            self._emit("message.started", message_id=self._message_id)

    def tell_missing(self, drawn: Container[str], *, forced: bool) -> None:
        """At the end of a completed turn: pictures that were begun, or `forced`, and of which nothing was heard.

        `drawn` holds the tool_call_ids whose bytes arrived.
        """
        begun = [call_id for call_id, name in self._tools.items() if name == IMAGE_TOOL]
        for call_id in begun:
            if call_id not in drawn and call_id not in self._failed:
                detail = "The provider began this picture and never sent it: try again."
                self._attachment_failed(call_id, "image_missing", detail, retryable=True)
        if forced and not begun and not self._drew_before:
            detail = "A picture was asked for, but the model answered without drawing one; its text may say why."
            self._attachment_failed(None, "image_not_drawn", detail, retryable=True)

    def _raw(self, event: Any) -> None:
        kind = str(event.type)
        if kind in TEXT_DELTAS:
            self._text(event.item_id, event.delta)
        elif kind == "response.reasoning_summary_text.delta":
            self._emit("reasoning.delta", delta=event.delta)
        elif kind == "response.output_item.added":
            self._item_added(event.item)
        elif kind == "response.output_item.done":
            self._item_done(event.item)
        elif getattr(event, "item_id", None) in self._tools and _progress(kind):
            call_id = event.item_id
            self._emit("tool.progress", tool_call_id=call_id, name=self._tools[call_id], status=_progress(kind))

    def _text(self, item_id: str, delta: str) -> None:
        self.start_message()
        # Models do say it, and Postgres keeps it out of a text.
        delta = delta.replace("\0", "")
        parts = self._parts.setdefault(item_id, [])
        if not parts and len(self._parts) > 1 and self.text:
            self._emit("text.delta", message_id=self._message_id, delta="\n\n")
        parts.append(delta)
        for start in range(0, len(delta), MAX_DELTA_CHARACTERS):
            piece = delta[start : start + MAX_DELTA_CHARACTERS]
            self._emit("text.delta", message_id=self._message_id, delta=piece)

    def _item_added(self, item: Any) -> None:
        if item.type == "message":
            self.start_message()
        elif item.type in HOSTED:
            self._start_tool(item.id, HOSTED[item.type])
        elif item.type == "function_call" and not item.name.startswith(HANDOFF_PREFIX):
            self._start_tool(item.call_id, item.name)

    def _item_done(self, item: Any) -> None:
        if item.type in HOSTED:
            self._finish_tool(item.id, HOSTED[item.type], failed=item.status == "failed")
            if item.type == "image_generation_call" and item.status == "failed":
                self._picture_failed(item)
        elif item.type == "message":
            self._whole_text(item)

    def _whole_text(self, item: Any) -> None:
        # Some streams bring a message without deltas.
        if item.id not in self._parts:
            text = "".join(getattr(part, "text", None) or getattr(part, "refusal", "") for part in item.content)
            if text:
                self._text(item.id, text)

    def _start_tool(self, call_id: str, name: str) -> None:
        if call_id not in self._tools:
            self._tools[call_id] = name
            self._emit("tool.started", tool_call_id=call_id, name=name, status="in_progress")

    def _finish_tool(self, call_id: str, name: str, *, failed: bool) -> None:
        self._start_tool(call_id, name)
        self._emit("tool.completed", tool_call_id=call_id, name=name, status="failed" if failed else "completed")

    def _tool_output(self, raw: Any) -> None:
        call_id = str(cast(dict[str, Any], raw)["call_id"] if isinstance(raw, dict) else raw.call_id)
        if call_id in self._tools:
            self._finish_tool(call_id, self._tools[call_id], failed=False)

    def _picture_failed(self, item: Any) -> None:
        error = getattr(item, "error", None)
        fault = cast(dict[str, Any], error if isinstance(error, dict) else error.model_dump() if error else {})
        code = str(fault.get("code") or "image_generation_failed")
        self._failed.add(item.id)
        if code == "moderation_blocked":
            self._attachment_failed(item.id, code, refused_in_words(fault.get("moderation_details")), retryable=False)
            return
        detail = f"The provider could not draw this picture: {fault.get('message') or 'no reason given'}"
        # The type says whose fault it is: the same request would fail again.
        self._attachment_failed(item.id, code, detail, retryable=fault.get("type") != "image_generation_user_error")

    def _attachment_failed(self, call_id: str | None, code: str, detail: str, *, retryable: bool) -> None:
        fields = {"code": code, "detail": detail, "retryable": retryable}
        self._emit("attachment.failed", tool_call_id=call_id, object_id=None, **fields)

    def _agent_changed(self, agent_key: str) -> None:
        if self.agent_key is not None and self.agent_key != agent_key:
            self._emit("agent.changed", agent_key=agent_key)
        self.agent_key = agent_key


def refused_in_words(moderation_details: object) -> str:
    """What the provider's safety system refused and why; `{moderation_stage, categories}`, or None without details."""
    details = cast(dict[str, Any], moderation_details if isinstance(moderation_details, dict) else {})
    stage = details.get("moderation_stage") or details.get("stage")
    what = {"input": "what was asked for", "output": "the picture that was drawn"}.get(str(stage), "this picture")
    categories = ", ".join(str(name).replace("_", " ") for name in cast(list[object], details.get("categories") or []))
    why = f" ({categories})" if categories else ""
    return f"The provider's safety system refused {what}{why}: change what you ask for."


def _progress(kind: str) -> str | None:
    """`generating` of `response.image_generation_call.generating`; None for what is no progress."""
    status = kind.rpartition(".")[2]
    return status if status in ("in_progress", "generating", "searching", "interpreting", "completed") else None
