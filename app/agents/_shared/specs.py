"""What an agent is, in its author's words: the public `AgentSpec`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class AgentSpec:
    """One agent; `app/agents/<name>/spec.py` returns it from `get_agent_spec()`. Checked as the service starts.

    `model_key`: `default`, `code`, or any other `x` for which `AGENT_X_MODEL` may be set; without it the default model.
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
