"""Agents from their specs: the document's example, faults told all at once, and what reaches the SDK."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, ImageGenerationTool
from agents.models.openai_responses import Converter
from agents.testing import ScriptedModel

from app.agents._shared.build import build_agent
from app.agents._shared.registry import Registry, SpecError, check_tool_choice, image_options, load_registry
from app.images.options import OptionError
from app.settings import Settings

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
    registry = load_registry(_settings(), today=TODAY)
    assert {"assistant", "designer"} <= set(registry.specs)
    assert registry.warnings == []


def test_all_faults_are_told_at_once_with_agent_field_value_and_what_is_allowed(tmp_path: Path) -> None:
    image = 'tool_keys=("image_generation",), tool_configs={"image_generation": '
    _write(tmp_path, "one", _spec('key="one", tool_keys=("painting",), handoff_keys=("nobody",), tool_choice="x"'))
    _write(tmp_path, "two", _spec('key="two", ' + image + '{"size": "10x10"}}'))
    _write(tmp_path, "three", _spec('key="three", ' + image + '{"format": "png", "compression": 80}}'))
    _write(tmp_path, "four", _spec('key="four", tool_configs={"web_search": {}}, prompt_path="missing.md"'))
    _write(tmp_path, "five", _spec('key="Five!", tool_keys="image_generation", max_turns=True'))
    _write(tmp_path, "six", _spec('key="six", tool_keys=("file_search",)'))
    _write(tmp_path, "seven", "raise RuntimeError('broken')")
    message = _refusal(tmp_path)
    for words in (
        *("agent 'one': tool_keys: 'painting'", "handoff_keys: 'nobody'", "tool_choice: 'x'", "image_generation"),
        *("agent 'two': tool_configs.image_generation.size: '10x10'", "multiples of 16"),
        *("agent 'three': tool_configs.image_generation.compression: 80", "jpeg or webp"),
        *("agent 'four': tool_configs: 'web_search'", "missing.md", "agent 'Five!': key: 'Five!'"),
        *("tool_keys: 'image_generation'", "max_turns: True", "agent 'six': tool_configs.file_search.vector_store_ids"),
        "RuntimeError: broken",
    ):
        assert words in message


def test_two_specs_with_one_key_stop_the_start(tmp_path: Path) -> None:
    _write(tmp_path, "one", _spec('key="same"'))
    _write(tmp_path, "two", _spec('key="same"'))
    assert "key: 'same'" in _refusal(tmp_path)


def test_a_house_without_agents_does_not_start(tmp_path: Path) -> None:
    _write(tmp_path, "_shared", _spec('key="hidden"'))
    assert "holds no agent" in _refusal(tmp_path)


def test_an_impossible_setting_is_told_once(tmp_path: Path) -> None:
    _write(tmp_path, "one", EXAMPLE)
    message = _refusal(tmp_path, image_default_size="1x1")
    assert message.count("- ") == message.count("IMAGE_DEFAULT_SIZE") == 1


def test_deprecated_models_are_warned_about(tmp_path: Path) -> None:
    _write(tmp_path, "one", _spec('key="one"'))
    registry = _load(tmp_path, agent_default_model="gpt-5.1", image_model="gpt-image-1.5")
    assert [warning.partition(":")[0] for warning in registry.warnings] == ["IMAGE_MODEL", "agent 'one'"]
    assert "gpt-6.1-sol" in registry.warnings[1]


def test_agents_that_hand_over_in_a_circle_are_built(tmp_path: Path) -> None:
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


def _build(registry: Registry, key: str, tool_choice: str | None) -> Agent[Any]:
    return build_agent(
        registry,
        key,
        model_for=lambda _: ScriptedModel([]),
        image_options=lambda _: {"quality": "low"},
        runs_in_background=lambda _: False,
        tool_choice=tool_choice,
        safety_identifier="somebody",
    )


def _write(directory: Path, folder: str, source: str) -> None:
    (directory / folder).mkdir()
    (directory / folder / "spec.py").write_text(source)
    (directory / folder / "prompt.md").write_text("Draw.\n")


def _spec(fields: str) -> str:
    return f"{HEAD}{NAMES}{fields})\n"


def _load(directory: Path, **settings: Any) -> Registry:
    return load_registry(_settings(**settings), directory, today=TODAY)


def _refusal(directory: Path, **settings: Any) -> str:
    with pytest.raises(SpecError) as caught:
        _load(directory, **settings)
    return str(caught.value)


def _settings(**values: Any) -> Settings:
    return Settings.model_validate(values)
