"""Function tools and handoffs: in the stream, as the provider is sent them, and the faults of an agent's tools.py."""

import json
import re
from collections.abc import Generator
from datetime import date, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.agents._shared.registry import SpecError, load_registry
from app.agents._shared.sdk_tools import make_function_tool
from app.agents.assistant.tools import current_time
from app.settings import Settings
from tests.app_server import ApiUser, AppServer, kinds, one, running_server
from tests.made_streams import call, stream_of
from tests.stream_server import serving

SPEC = """
from app.agents._shared.specs import AgentSpec


def get_agent_spec() -> AgentSpec:
    return AgentSpec(key="assistant", display_name="A", description="An agent.", prompt_path=None, tool_keys={keys})
"""
TOOLS = '''
from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass

from app.agents._shared.specs import ToolContext

from .words import WORD


@dataclass
class Report:  # resolves its annotations through sys.modules
    text: str


async def ids(context: ToolContext, prefix: str) -> str:
    """Return the ids of this run.

    Args:
        prefix: What the answer begins with.
    """
    return Report(f"{WORD} {prefix} {asdict(context)}").text


def thread(number: int = 1) -> str:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return "no loop here"
    return "in the loop"


def broken() -> str:
    """Fail."""
    raise RuntimeError("a secret of the tool")
'''


@pytest.fixture
def own_tools(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    """A server whose assistant has the tools above."""
    agents = tmp_path / "agents"
    write_agent(agents / "mine", SPEC.replace("{keys}", '("ids", "thread", "broken")'), TOOLS)
    (agents / "mine" / "words.py").write_text('WORD = "these:"\n')
    with running_server(database_url, provider_url, tmp_path / "data", agents=agents) as server:
        yield server


def test_a_model_that_repeats_calls_of_a_tool_it_lacks_is_stopped(database_url: str, tmp_path: Path) -> None:
    with (
        serving(*(stream_of(call("read_file", f"call_{number}")) for number in range(9))) as provider,
        running_server(database_url, provider.url, tmp_path) as server,
    ):
        events = server.sign_up("Ada's").ask("Read it")
    assert (events[-1]["type"], events[-1]["error"]["code"]) == ("run.failed", "model_misbehaved")
    assert {event["status"] for event in events if event["type"] == "tool.completed"} == {"failed"}
    assert len(provider.posts) == 2


def test_a_tool_knows_for_whom_it_works(own_tools: AppServer, provider_url: str) -> None:
    ada, word = own_tools.sign_up(), uuid4().hex
    events = ada.ask(f"Who am I, {word}? [offline: call=ids]")
    first, second = requests_with(provider_url, word)
    run = events[-1]["run"]
    assert kinds(events)[-1] == "run.completed"
    expected = [ada.signed_up["tenant"]["id"], ada.signed_up["user"]["id"], run["id"], run["conversation_id"]]
    assert ids_in(output_in(second)) == expected
    assert output_in(second).startswith("these: ")
    # The model may choose the prefix, and none of the ids.
    (tool,) = [tool for tool in first["tools"] if tool["name"] == "ids"]
    assert list(tool["parameters"]["properties"]) == ["prefix"]
    assert tool["parameters"]["properties"]["prefix"]["description"] == "What the answer begins with."
    assert tool["description"] == "Return the ids of this run."


def test_a_tool_that_is_not_async_runs_in_a_thread(own_tools: AppServer, provider_url: str) -> None:
    ada, word = own_tools.sign_up(), uuid4().hex
    assert kinds(ada.ask(f"Hello {word} [offline: call=thread]"))[-1] == "run.completed"
    assert output_in(requests_with(provider_url, word)[-1]) == "no loop here"


def test_a_tool_that_fails_is_logged_and_the_run_goes_on(
    own_tools: AppServer, provider_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ada, word = own_tools.sign_up(), uuid4().hex
    assert kinds(ada.ask(f"Hello {word} [offline: call=broken]"))[-1] == "run.completed"
    assert "error occurred" in output_in(requests_with(provider_url, word)[-1])
    assert "a secret of the tool" not in json.dumps(requests_with(provider_url, word))
    (failed,) = [record for record in caplog.records if record.message == "tool.failed"]
    assert vars(failed)["tool"] == "broken"
    assert "a secret of the tool" in str(failed.exc_info)


FAULTS: list[tuple[str, str, str]] = [
    ("def find(x: str) -> str:\n    return x", "tools.py: 'find'", "a docstring"),
    ('def find(x) -> str:\n    """Find."""', "tools.py: 'find'", "all have types (not so: x)"),
    ('def find(x: "Missing") -> str:\n    """Find."""', "tools.py: 'find'", "NameError"),
    ('def find(x: dict[str, int]) -> str:\n    """Find."""', "tools.py: 'find'", "JSON Schema can describe"),
    ('def find(**x: str) -> str:\n    """Find."""', "tools.py: 'find'", "JSON Schema can describe"),
    ('def find(x: str, c: ToolContext) -> str:\n    """Find."""', "tools.py: 'find'", "first parameter"),
    ('def find(c: ToolContext | None) -> str:\n    """Find."""', "tools.py: 'find'", "exactly a ToolContext"),
    ('@function_tool\ndef find(x: str) -> str:\n    """Find."""', "tools.py: 'find'", "a plain function"),
    ('def find() -> str:\n    """Find."""\ndef find() -> str:\n    """Two."""', "tools.py: 'find'", "defined once"),
    ('def web_search() -> str:\n    """Find."""\n\nfind = web_search', "tools.py: 'web_search'", "no tool of Easel's"),
    ('raise RuntimeError("broken")', "tools.py cannot be read: RuntimeError: broken", ""),
    ('def _find() -> str:\n    """Find."""', "tool_keys: 'find'", "code_interpreter"),
    ('def other() -> str:\n    """Find."""', "tool_keys: 'find'", "code_interpreter, other"),
]


@pytest.mark.parametrize(("source", "fault", "allowed"), FAULTS)
def test_a_fault_of_a_tool_stops_the_start(tmp_path: Path, source: str, fault: str, allowed: str) -> None:
    imports = "from agents import function_tool\n\nfrom app.agents._shared.specs import ToolContext\n\n\n"
    message = rejection(tmp_path, '("find",)', imports + source)
    assert message.count("- ") == 1
    assert fault in message
    assert allowed in message


def test_a_tool_may_not_have_the_name_of_a_handoff(tmp_path: Path) -> None:
    message = rejection(tmp_path, '("transfer_to_x",)', 'def transfer_to_x() -> str:\n    """Find."""')
    assert "tools.py: 'transfer_to_x'" in message


def test_faults_of_tools_are_reported_with_those_of_specs(tmp_path: Path) -> None:
    write_agent(tmp_path / "one", SPEC.replace("{keys}", '("find", "nothing")'), "def find():\n    pass\n")
    write_agent(tmp_path / "two", SPEC.replace("{keys}", "7").replace('"assistant"', '"two"'), "def ((")
    with pytest.raises(SpecError) as caught:
        load_registry(settings(), tmp_path, make_tool=make_function_tool)
    for part in ("agent 'assistant': tools.py: 'find'", "tool_keys: 'nothing'", "agent 'two': tool_keys: 7"):
        assert part in str(caught.value)


def test_only_functions_that_a_spec_names_are_tools(tmp_path: Path) -> None:
    source = "from app.agents.assistant.tools import current_time\n\n\ndef helper(x):\n    return x\n"
    write_agent(tmp_path / "one", SPEC.replace("{keys}", '("current_time",)'), source)
    loaded = load_registry(settings(), tmp_path, today=date(2026, 11, 20)).specs["assistant"]
    assert list(loaded.functions) == ["current_time"]


def test_the_time_tool_returns_the_time_or_says_why_not() -> None:
    assert datetime.fromisoformat(current_time()).tzinfo is not None
    for name in ("Nowhere/Land", "../etc/passwd", "\0"):
        assert "no time zone" in current_time(name)


def test_a_function_tool_is_called(ada: ApiUser) -> None:
    events = ada.ask("What is the time? [offline: call=current_time]")
    started = one(events, "tool.started")
    assert started["name"] == "current_time"
    assert one(events, "tool.completed")["tool_call_id"] == started["tool_call_id"]
    assert kinds(events)[-1] == "run.completed"


def test_a_handoff_changes_the_agent_and_is_no_tool_call(ada: ApiUser) -> None:
    events = ada.ask("Draw a red house [offline: call=transfer_to_designer]")
    assert one(events, "agent.changed")["agent_key"] == "designer"
    assert not [event for event in events if event["type"] == "tool.started" and "transfer" in event["name"]]
    assert kinds(events)[-1] == "run.completed"
    # Whose answer it is, live and after a reload; the run is still the one that was started.
    assert one(events, "message.completed")["message"]["agent_key"] == "designer"
    run = events[-1]["run"]
    assert (ada.messages(run["conversation_id"])[-1]["agent_key"], run["agent_key"]) == ("designer", "assistant")


def write_agent(folder: Path, spec: str, tools: str) -> None:
    folder.mkdir(parents=True)
    (folder / "spec.py").write_text(spec)
    (folder / "tools.py").write_text(tools)


def rejection(directory: Path, keys: str, tools: str) -> str:
    write_agent(directory / "one", SPEC.replace("{keys}", keys), tools)
    with pytest.raises(SpecError) as caught:
        load_registry(settings(), directory, make_tool=make_function_tool)
    return str(caught.value)


def settings() -> Settings:
    return Settings(_env_file=None)  # pyright: ignore[reportCallIssue]  # pydantic-settings hides it from the types


def requests_with(provider_url: str, word: str) -> list[dict[str, Any]]:
    """The request with that word, and those that were sent after it."""
    log = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    bodies = [entry["body"] for entry in log if entry["path"].endswith("/responses") and entry["method"] == "POST"]
    start = next(at for at, body in enumerate(bodies) if word in json.dumps(body))
    return bodies[start:]


def output_in(body: dict[str, Any]) -> str:
    (item,) = [item for item in body["input"] if item["type"] == "function_call_output"]
    return str(item["output"])


def ids_in(text: str) -> list[str]:
    return re.findall(r"UUID\('([0-9a-f-]{36})'\)", text)
