"""Agents from their specs: the document's example, folders of the user's, all faults at once, what reaches the SDK."""

import shutil
from collections.abc import Generator
from datetime import date
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from agents import Agent, ImageGenerationTool
from agents.models.openai_responses import Converter
from agents.testing import ScriptedModel

import app.agents
from app.agents._shared import spec_files
from app.agents._shared.build import build_agent
from app.agents._shared.registry import Registry, SpecError, check_tool_choice, image_options, load_registry
from app.images.options import OptionError
from app.settings import Settings, SettingsError
from tests.app_server import one, running_provider, running_server

TODAY = date(2026, 11, 20)
HEAD = "from app.agents._shared.specs import AgentSpec\n\n\ndef get_agent_spec() -> AgentSpec:\n    return AgentSpec("
NAMES = 'display_name="A", description="An agent.", '
# The example of the user's document, word for word.
EXAMPLE = (
    HEAD
    + """
        key="designer",
        display_name="Image Designer",
        description="Creates and edits marketing visuals.",
        model_key="code",  # uses settings.agent_code_model or agent_default_model
        tool_keys=("image_generation",),
        tool_configs={
            "image_generation": {
                "size": "1024x1024",
                "quality": "high",
                "format": "png",
                "background": "auto",
                # optional: "compression": 80, "partial_images": 2
            }
        },
        prompt_path=...,  # your prompt file
    )
"""
)


@pytest.fixture
def own_provider(tmp_path: Path) -> Generator[str]:
    """A provider nobody else asks, so that what it was sent is this test's."""
    with running_provider(tmp_path / "provider") as url:
        yield url


def test_the_documents_example_runs_word_for_word(tmp_path: Path) -> None:
    _write(tmp_path, "my_agent", EXAMPLE)
    loaded = _load(tmp_path, agent_code_model="gpt-code").specs["designer"]
    assert (loaded.model, loaded.prompt) == ("gpt-code", "Draw.")
    assert image_options(_settings(), loaded, {}) == {
        "size": "1024x1024",
        "quality": "high",
        "output_format": "png",
        "background": "auto",
        "partial_images": 2,
    }


def test_our_own_agents_load() -> None:
    loaded = load_registry(_settings(), today=TODAY)
    assert {"assistant", "designer"} <= set(loaded.specs)
    assert loaded.warnings == []


def test_all_faults_are_reported_at_once_with_agent_field_value_and_what_is_allowed(tmp_path: Path) -> None:
    image = 'tool_keys=("image_generation",), tool_configs={"image_generation": '
    _write(tmp_path, "one", _spec('key="one", tool_keys=("painting",), handoff_keys=("nobody",), tool_choice="x"'))
    _write(tmp_path, "two", _spec('key="two", ' + image + '{"size": "10x10"}}'))
    _write(tmp_path, "three", _spec('key="three", ' + image + '{"format": "png", "compression": 80}}'))
    _write(tmp_path, "four", _spec('key="four", tool_configs={"web_search": {}}, prompt_path="missing.md"'))
    _write(tmp_path, "five", _spec('key="Five!", tool_keys="image_generation", max_turns=True'))
    _write(tmp_path, "six", _spec('key="six", tool_keys=("file_search",)'))
    _write(tmp_path, "seven", "raise RuntimeError('broken')")
    message = _rejection(tmp_path)
    for words in (
        *("agent 'one': tool_keys: 'painting'", "handoff_keys: 'nobody'", "tool_choice: 'x'", "image_generation"),
        *("agent 'two': tool_configs.image_generation.size: '10x10'", "multiples of 16"),
        *("agent 'three': tool_configs.image_generation.compression: 80", "jpeg or webp"),
        *("agent 'four': tool_configs: 'web_search'", "missing.md", "agent 'Five!': key: 'Five!'"),
        *("tool_keys: 'image_generation'", "max_turns: True", "agent 'six': tool_configs.file_search.vector_store_ids"),
        "RuntimeError: broken",
    ):
        assert words in message


@pytest.mark.slow
def test_the_example_pasted_beside_the_shipped_agents_replaces_the_designer_and_draws(
    database_url: str, own_provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = tmp_path / "agents"
    shutil.copytree(spec_files.AGENTS_DIRECTORY, agents)
    monkeypatch.setattr(spec_files, "AGENTS_DIRECTORY", agents)
    monkeypatch.setattr(app.agents, "__path__", [*app.agents.__path__, str(agents)])
    _write(agents, "my_agent", EXAMPLE)
    with running_server(database_url, own_provider, tmp_path / "data", agents=agents) as server:
        ada = server.sign_up()
        assert one(ada.draw(), "attachment.created")["attachment"]["agent_key"] == "designer"
        assert ada.ask("Draw a red house [offline: call=transfer_to_designer]")[-1]["type"] == "run.completed"
    sent = [body["instructions"] for body in _posts(own_provider)]
    assert (sent[0], sent[-1]) == ("Draw.", "Draw.")
    (warning,) = cast(Registry, server.uvicorn.app.state.registry).warnings
    assert warning == f"agent 'designer': the one in {agents / 'my_agent'} replaces the one that comes with Easel"


def test_agents_outside_the_image_go_before_the_shipped_ones_with_a_warning(
    database_url: str, own_provider: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first, second):
        directory.mkdir()
    _write(first, "my_agent", EXAMPLE)
    _write(second, "designer", _spec('key="poster", tool_keys=("image_generation",)'))
    with running_server(database_url, own_provider, tmp_path / "data", agents_dir=f"{first}, {second}") as server:
        ada = server.sign_up()
        assert one(ada.draw(), "attachment.created")
        assert ada.ask("Hello", agent_key="poster")[-1]["type"] == "run.completed"
        listed = [agent["key"] for agent in ada.http.get("/v1/agents").json()["data"]]
    assert listed == ["assistant", "designer", "poster"]
    assert _posts(own_provider)[0]["instructions"] == "Draw."
    warnings = [vars(record)["warning"] for record in caplog.records if record.message == "agents.warning"]
    assert warnings == [f"agent 'designer': the one in {first / 'my_agent'} replaces the one that comes with Easel"]


def test_folders_that_hold_no_agents_are_one_fault_each(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError) as caught:
        load_registry(_settings(agents_dir=f"{tmp_path / 'missing'},{tmp_path / 'empty'}"))
    message = str(caught.value)
    assert message.count("- ") == message.count("- AGENTS_DIR: ") == 2
    assert f"- AGENTS_DIR: {tmp_path / 'missing'} does not exist or holds no agent" in message


def test_two_agents_of_the_users_with_one_key_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    _write(tmp_path, "one", _spec('key="same"'))
    _write(tmp_path, "two", _spec('key="same"'))
    assert f"key: 'same' is not possible; allowed: a key of its own ({tmp_path / 'one'}" in _rejection(tmp_path)
    _write(tmp_path / "more", "three", _spec('key="third"'))
    _write(tmp_path, "four", _spec('key="third"'))
    assert "key: 'third'" in _rejection(tmp_path, agents_dir=str(tmp_path / "more"))


def test_every_agent_of_this_repository_is_known_as_shipped() -> None:
    folders = spec_files.AGENTS_DIRECTORY.glob("*/spec.py")
    assert sorted(spec.parent.name for spec in folders) == sorted(spec_files.SHIPPED)


def test_a_prompt_that_is_missing_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "my_agent", EXAMPLE)
    (tmp_path / "my_agent" / "prompt.md").unlink()
    assert f"'prompt.md' is not possible; allowed: a text file (UTF-8) that exists, seen from {tmp_path}" in _rejection(
        tmp_path
    )


def test_a_folder_without_agents_does_not_start(tmp_path: Path) -> None:
    _write(tmp_path, "_shared", _spec('key="hidden"'))
    assert "holds no agent" in _rejection(tmp_path)


def test_an_impossible_setting_is_reported_once(tmp_path: Path) -> None:
    _write(tmp_path, "one", EXAMPLE)
    message = _rejection(tmp_path, image_default_size="1x1")
    assert message.count("- ") == message.count("IMAGE_DEFAULT_SIZE") == 1


def test_deprecated_models_are_warned_about(tmp_path: Path) -> None:
    _write(tmp_path, "one", _spec('key="one"'))
    warnings = _load(tmp_path, agent_default_model="gpt-5.1", image_model="gpt-image-1.5").warnings
    assert [warning.partition(":")[0] for warning in warnings] == ["IMAGE_MODEL", "agent 'one'"]
    assert "gpt-6.1-sol" in warnings[1]


@pytest.mark.parametrize(
    ("variable", "line", "model"),
    [
        ("from-environment", "from-file", "from-environment"),
        (None, "from-file", "from-file"),
        ("", "from-file", "from-file"),
        ("from-environment", "", "from-environment"),
        ("", "", "gpt-6.1-sol"),
        (None, None, "gpt-6.1-sol"),
    ],
)
def test_the_model_of_an_agents_own_key_comes_from_the_environment_then_from_dotenv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None, line: str | None, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if line is not None:
        (tmp_path / ".env").write_text(f"AGENT_BRAND_VOICE_MODEL={line}\nUNKNOWN=a-secret\n")
    if variable is not None:
        monkeypatch.setenv("AGENT_BRAND_VOICE_MODEL", variable)
    _write(tmp_path, "voice", _spec('key="voice", model_key="brand-voice"'))
    settings = Settings()
    assert load_registry(settings, tmp_path, today=TODAY).specs["voice"].model == model
    assert "a-secret" not in repr(settings)


def test_agents_with_circular_handoffs_are_built(tmp_path: Path) -> None:
    _write(tmp_path, "one", _spec('key="one", handoff_keys=("two",), tool_keys=("image_generation",)'))
    _write(tmp_path, "two", _spec('key="two", handoff_keys=("one",), store=False'))
    first = _build(_load(tmp_path), "one", "image_generation")
    (second,) = first.handoffs
    assert isinstance(second, Agent)
    assert second.handoffs == [first]
    assert (first.model_settings.store, second.model_settings.store) == (True, False)
    assert (first.model_settings.tool_choice, second.model_settings.tool_choice) == ("image_generation", None)
    assert Converter.convert_tool_choice("image_generation") == {"type": "image_generation"}
    (tool,) = first.tools
    assert isinstance(tool, ImageGenerationTool)
    assert tool.tool_config == {"type": "image_generation", "quality": "low"}


def test_a_tool_choice_names_a_tool_of_the_agent() -> None:
    specs = load_registry(_settings(), today=TODAY).specs
    check_tool_choice(specs["designer"], "image_generation")
    with pytest.raises(OptionError):
        check_tool_choice(specs["designer"], "current_time")


def _build(agents: Registry, key: str, tool_choice: str | None) -> Agent[Any]:
    return build_agent(
        agents,
        key,
        model_for=lambda _: ScriptedModel([]),
        image_options=lambda _: {"quality": "low"},
        runs_in_background=lambda _: False,
        tool_choice=tool_choice,
        safety_identifier="a user",
    )


def _posts(provider_url: str) -> list[dict[str, Any]]:
    """The bodies that were posted to /v1/responses."""
    requests = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    return [entry["body"] for entry in requests if (entry["method"], entry["path"]) == ("POST", "/v1/responses")]


def _write(directory: Path, folder: str, source: str) -> None:
    (directory / folder).mkdir()
    (directory / folder / "spec.py").write_text(source)
    (directory / folder / "prompt.md").write_text("Draw.\n")


def _spec(fields: str) -> str:
    return f"{HEAD}{NAMES}{fields})\n"


def _load(directory: Path, **settings: Any) -> Registry:
    return load_registry(_settings(**settings), directory, today=TODAY)


def _rejection(directory: Path, **settings: Any) -> str:
    with pytest.raises(SpecError) as caught:
        _load(directory, **settings)
    return str(caught.value)


def _settings(**values: Any) -> Settings:
    return Settings.model_validate(values)
