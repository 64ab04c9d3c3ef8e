"""What the author of an agent imports: `AgentSpec`, and `ToolContext` for functions of its tools.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any
from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """One agent; `app/agents/<name>/spec.py` returns it from `get_agent_spec()`. Checked as the service starts.

    `model_key`: `default`, `code`, or any other `x` whose model `AGENT_X_MODEL` names; the default model without it.
    `tool_keys`: tools that come with Easel (`image_generation`, `web_search`, `file_search`, `code_interpreter`), or
    functions of the tools.py beside the spec (see `ToolContext`).
    `tool_configs`: by tool key, e.g. the image options under `image_generation`.
    `prompt_path`: `...` means prompt.md beside the spec, a relative path starts there too, None means no prompt.
    `handoff_keys`: the agents it may hand the conversation over to.
    `tool_choice`: `auto`, `required`, `none` or one of `tool_keys`, for the agent's first turn in a run.
    `store`: whether the provider keeps the responses; without, the history is sent along each time.
    """

    key: str
    display_name: str
    description: str
    model_key: str | None = "default"
    tool_keys: tuple[str, ...] = ()
    tool_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    prompt_path: Path | str | EllipsisType | None = ...
    handoff_keys: tuple[str, ...] = ()
    tool_choice: str | None = None
    store: bool = True
    max_turns: int = 10


@dataclass(frozen=True, kw_only=True)
class ToolContext:
    """For whom a tool works; these ids never come from the model.

    A tool is a public function in `tools.py` whose name stands in `tool_keys`. The model reads its docstring and the
    types of its parameters. It may be async; if not, it runs in a thread. If its first parameter is a ToolContext, the
    service fills it in:

        async def order_status(context: ToolContext, number: int) -> str:
            \"""Look up an order of the customer by its number.\"""

    A run that was interrupted by a crash continues where it was, so a tool may run twice with the same arguments:
    let it only look things up, or make its effect safe to repeat.
    """

    tenant_id: UUID
    user_id: UUID
    run_id: UUID
    conversation_id: UUID
