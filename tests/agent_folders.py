"""Folders of agents without words of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPEC = """
from app.agents._shared.specs import AgentSpec


def get_agent_spec() -> AgentSpec:
    return AgentSpec(key={key!r}, display_name="A", description="An agent.", prompt_path=None, **{more!r})
"""


def write_agents(directory: Path, agents: Mapping[str, Mapping[str, Any]]) -> Path:
    """By key, with what its spec says further; the folder for `running_server(agents=…)`."""
    for key, more in agents.items():
        (directory / key).mkdir(parents=True)
        (directory / key / "spec.py").write_text(SPEC.format(key=key, more=dict(more)))
    return directory
