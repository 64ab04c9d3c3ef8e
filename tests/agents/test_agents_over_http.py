"""The list of agents, from which a front end draws what a run may ask of each agent's image tool."""

from collections.abc import Generator, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from tests.agent_folders import write_agents
from tests.app_server import ApiUser, AppServer, running_server

Json = dict[str, Any]
DRAWS: Json = {"tool_keys": ("image_generation",)}
AGENTS: dict[str, Json] = {
    "talker": {},
    "clock": {"tool_keys": ("current_time",), "handoff_keys": ("designer",)},
    "designer": DRAWS,
    "animator": {**DRAWS, "tool_configs": {"image_generation": {"format": "gif", "frame_count": 4}}},
}
# What an option may need beside it.
BESIDE: list[Json] = [{}, {"format": "webp"}, {"format": "gif"}, {"format": "svg"}]


@pytest.fixture(scope="module")
def drawing_server(
    postgres: Any, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[AppServer]:
    directory = tmp_path_factory.mktemp("agents")
    agents = write_agents(directory / "agents", AGENTS)
    for key in AGENTS:
        (agents / key / "tools.py").write_text('def current_time() -> str:\n    """The time."""\n    return "noon"\n')
    with (
        postgres.database(migrated_template) as database_url,
        running_server(database_url, provider_url, directory / "data", agents=agents) as server,
    ):
        yield server


@pytest.fixture
def server(drawing_server: AppServer) -> AppServer:
    return drawing_server


def agents_of(user: ApiUser) -> dict[str, Json]:
    answer = user.http.get("/v1/agents")
    assert answer.status_code == 200, answer.text
    return {agent["key"]: agent for agent in answer.json()["data"]}


def values_of(schema: Json) -> Iterator[Any]:
    """What a form would offer of one option, and what is next to it."""
    yield from schema.get("enum", ())
    if schema["type"] == "string":
        yield from ("auto", "1024x1024", "", 1)
    for bound, outwards in (("minimum", -1), ("maximum", 1)):
        if bound in schema:
            yield from (schema[bound], schema[bound] + outwards)


def test_an_agent_that_cannot_draw_has_no_schema(ada: ApiUser, stranger: ApiUser) -> None:
    listed = agents_of(ada)
    assert {key for key, agent in listed.items() if agent["image_schema"] is None} == {"talker", "clock"}
    assert all((agent["image"] is None) == (agent["image_schema"] is None) for agent in listed.values())
    assert agents_of(stranger) == listed


def test_the_schema_of_each_agent_has_its_own_defaults(ada: ApiUser) -> None:
    listed = agents_of(ada)
    designer, animator = (listed[key]["image_schema"]["properties"] for key in ("designer", "animator"))
    assert (designer["format"]["default"], animator["format"]["default"]) == ("png", "gif")
    assert (designer["partial_images"]["default"], animator["partial_images"]["default"]) == (2, 0)
    assert "default" not in designer["frame_count"]
    assert animator["frame_count"]["default"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["designer", "animator"])
def test_what_the_schema_accepts_is_what_a_run_accepts(ada: ApiUser, agent: str) -> None:
    schema = agents_of(ada)[agent]["image_schema"]
    validator = Draft202012Validator(schema)
    answers: dict[bool, int] = {True: 0, False: 0}
    for name, described in schema["properties"].items():
        for value in values_of(described):
            for beside in BESIDE:
                image = {**beside, name: value}
                accepted = validator.is_valid(image)
                body = {"input": "Draw a house", "agent_key": agent, "image": image}
                answer = ada.http.post("/v1/runs/estimate", json=body)
                assert answer.status_code == (200 if accepted else 422), (image, answer.text)
                answers[accepted] += 1
    assert min(answers.values()) > 50, answers


@pytest.mark.parametrize("agent", ["designer", "animator"])
def test_each_choice_of_the_schema_is_possible_beside_some_format(ada: ApiUser, agent: str) -> None:
    schema = agents_of(ada)[agent]["image_schema"]
    validator = Draft202012Validator(schema)
    for name, described in schema["properties"].items():
        if name != "input_fidelity":  # which needs a model
            for value in described.get("enum", ()):
                assert any(validator.is_valid({**beside, name: value}) for beside in BESIDE), (name, value)


def _shut_down(model: str, today: date) -> bool:
    return True


def test_an_agent_whose_model_was_shut_down_since_the_start_is_listed_as_one_that_cannot_draw(
    database_url: str, provider_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = write_agents(tmp_path / "agents", {"designer": DRAWS, "talker": {}})
    given = (database_url, provider_url, tmp_path / "data")
    with running_server(*given, agents=agents, image_model="gpt-image-1.5") as server:
        ada = server.sign_up()
        assert agents_of(ada)["designer"]["image"] is not None
        monkeypatch.setattr("app.images.deprecations.is_shut_down", _shut_down)
        found = agents_of(ada)
    assert (found["designer"]["image"], found["designer"]["image_schema"]) == (None, None)
    assert found.keys() == {"designer", "talker"}
