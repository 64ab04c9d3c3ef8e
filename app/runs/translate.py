"""The SDK's stream events, told as ours."""

from typing import Any, Protocol, cast

from agents import AgentUpdatedStreamEvent, RawResponsesStreamEvent, RunItemStreamEvent, StreamEvent

from app.runs.log import MAX_DELTA_CHARACTERS

HANDOFF_PREFIX = "transfer_to_"
# Tools that the provider runs itself: its item type -> the tool's key with us.
HOSTED = {
    "image_generation_call": "image_generation",
    "web_search_call": "web_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
}
TEXT_DELTAS = ("response.output_text.delta", "response.refusal.delta")


class Emit(Protocol):
    def __call__(self, kind: str, **fields: Any) -> None: ...


class Translator:
    """Keeps what the message says so far; emits one of our events for each of the SDK's that means something."""

    def __init__(self, emit: Emit, *, message_id: str) -> None:
        self.agent_key: str | None = None
        self._emit = emit
        self._message_id = message_id
        self._parts: dict[str, list[str]] = {}
        self._message_started = False
        self._tools: dict[str, str] = {}

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
        self._emit(
            "attachment.failed",
            tool_call_id=item.id,
            object_id=None,
            code=code,
            detail=_failure_detail(code, fault),
            retryable=code != "moderation_blocked",
        )

    def _agent_changed(self, agent_key: str) -> None:
        if self.agent_key is not None and self.agent_key != agent_key:
            self._emit("agent.changed", agent_key=agent_key)
        self.agent_key = agent_key


def _progress(kind: str) -> str | None:
    """`generating` of `response.image_generation_call.generating`; None for what is no progress."""
    status = kind.rpartition(".")[2]
    return status if status in ("in_progress", "generating", "searching", "interpreting", "completed") else None


def _failure_detail(code: str, fault: dict[str, Any]) -> str:
    if code != "moderation_blocked":
        return f"The provider could not draw this picture: {fault.get('message') or 'no reason given'}"
    details = cast(dict[str, Any], fault.get("moderation_details") or {})
    stage = details.get("moderation_stage") or details.get("stage")
    categories = ", ".join(map(str, cast(list[object], details.get("categories") or [])))
    where = f" at the {stage} check" if stage else ""
    why = f" ({categories})" if categories else ""
    return f"The provider's safety system refused this picture{where}{why}."
