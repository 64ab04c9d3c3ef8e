"""Follow-ups and edits: by the last answer, by an image's id, by its bytes; the lineage is the same each way."""

# ruff: noqa: T201 - the suite prints its figures

import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.agents._shared.spec_files import AGENTS_DIRECTORY
from tests.app_server import ApiUser, AppServer, Event, one, running_provider, running_server

BODY_LIMIT = 1024 * 1024
TURNS = [5, pytest.param(21, marks=pytest.mark.prove)]

Json = dict[str, Any]


@pytest.fixture
def own_provider(tmp_path: Path) -> Generator[str]:
    """A provider nobody else asks, so that what it was sent is this test's."""
    with running_provider(tmp_path / "provider") as url:
        yield url


@pytest.fixture
def forgetful(database_url: str, own_provider: str, tmp_path: Path) -> Generator[AppServer]:
    """Its designer asks the provider to store nothing."""
    folder = tmp_path / "agents" / "designer"
    shutil.copytree(AGENTS_DIRECTORY / "designer", folder)
    spec = folder / "spec.py"
    spec.write_text(spec.read_text().replace("tool_keys=", "store=False,\n        tool_keys=", 1))
    with running_server(database_url, own_provider, tmp_path / "data", agents=tmp_path / "agents") as server:
        yield server


@pytest.fixture
def remembering(database_url: str, own_provider: str, tmp_path: Path) -> Generator[AppServer]:
    with running_server(database_url, own_provider, tmp_path / "data") as server:
        yield server


def test_it_means_the_last_image_while_the_provider_remembers(remembering: AppServer, own_provider: str) -> None:
    ada = remembering.sign_up()
    first = drawn(ada, "Draw a green house")
    second = drawn(ada, "Now make it look realistic", conversation_id=first["conversation_id"])
    assert second["parent_object_id"] == first["object_id"]
    assert second["sha256"] != first["sha256"]
    sent = last_request(own_provider)
    assert sent["previous_response_id"]
    assert images_in(sent) == []


def test_it_means_the_last_image_where_nothing_is_stored(forgetful: AppServer, own_provider: str) -> None:
    ada = forgetful.sign_up()
    first = drawn(ada, "Draw a green house")
    second = drawn(ada, "Now make it look realistic", conversation_id=first["conversation_id"])
    assert second["parent_object_id"] == first["object_id"]
    sent = last_request(own_provider)
    assert "previous_response_id" not in sent
    assert [part["type"] for part in images_in(sent)] == ["input_image"]
    assert sent["store"] is False


def test_a_new_image_descends_from_none(ada: ApiUser) -> None:
    first = drawn(ada, "Draw a green house")
    second = drawn(ada, "Draw a yellow boat", conversation_id=first["conversation_id"], image={"action": "generate"})
    assert (first["parent_object_id"], second["parent_object_id"]) == (None, None)


@pytest.mark.slow
def test_an_earlier_image_of_any_branch_is_edited_by_its_id(remembering: AppServer, own_provider: str) -> None:
    ada = remembering.sign_up()
    first = drawn(ada, "Draw a green house")
    drawn(ada, "Make the door red", conversation_id=first["conversation_id"])
    third = drawn(ada, "Make the roof blue", conversation_id=first["conversation_id"], edit=first["object_id"])
    assert third["parent_object_id"] == first["object_id"]
    sent = last_request(own_provider)
    assert sent["input"][-1] == {"type": "image_generation_call", "id": first["tool_call_id"]}
    assert "previous_response_id" not in sent
    assert sent["tool_choice"] == {"type": "image_generation"}
    # The branch goes on from there.
    fourth = drawn(ada, "Now make it night", conversation_id=first["conversation_id"])
    assert fourth["parent_object_id"] == third["object_id"]
    # In another conversation, too.
    elsewhere = drawn(ada, "Make it smaller", edit=first["object_id"])
    assert elsewhere["parent_object_id"] == first["object_id"]
    assert elsewhere["conversation_id"] != first["conversation_id"]


@pytest.mark.slow
def test_a_provider_that_has_forgotten_is_sent_the_bytes(
    remembering: AppServer, own_provider: str, tmp_path: Path
) -> None:
    ada = remembering.sign_up()
    first = drawn(ada, "Draw a green house")
    forget(tmp_path / "provider")
    edited = drawn(ada, "Make the roof blue", edit=first["object_id"], conversation_id=first["conversation_id"])
    assert edited["parent_object_id"] == first["object_id"]
    assert [part["type"] for part in images_in(last_request(own_provider))] == ["input_image"]
    forget(tmp_path / "provider")
    followed = drawn(ada, "Now make it look realistic", conversation_id=first["conversation_id"])
    assert followed["parent_object_id"] == edited["object_id"]
    assert [part["type"] for part in images_in(last_request(own_provider))] == ["input_image"]


def test_a_provider_that_wants_more_than_an_id_is_sent_the_bytes(remembering: AppServer, own_provider: str) -> None:
    ada = remembering.sign_up()
    first = drawn(ada, "Draw a green house")
    edited = drawn(ada, "Make the roof blue [offline: needs_reasoning]", edit=first["object_id"])
    assert edited["parent_object_id"] == first["object_id"]
    assert [part["type"] for part in images_in(last_request(own_provider))] == ["input_image"]


@pytest.mark.slow
@pytest.mark.parametrize("turns", TURNS)
def test_requests_stay_small_however_many_images_came_before(
    forgetful: AppServer, own_provider: str, turns: int
) -> None:
    sizes = bodies_of(forgetful.sign_up(), own_provider, turns)
    print(f"bodies of turns 2 to {turns} where nothing is stored, bytes: {sizes[1:]}")
    assert max(sizes) < BODY_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("turns", TURNS)
def test_requests_stay_tiny_on_stored_responses(remembering: AppServer, own_provider: str, turns: int) -> None:
    sizes = bodies_of(remembering.sign_up(), own_provider, turns)
    print(f"bodies of turns 2 to {turns} on stored responses, bytes: {sizes[1:]}")
    assert max(sizes) < 8 * 1024


def bodies_of(ada: ApiUser, provider_url: str, turns: int) -> list[int]:
    high = {"quality": "high"}
    first = drawn(ada, "Draw a house, number 1", image=high)
    for number in range(2, turns + 1):
        drawn(ada, f"Now change it, number {number}", conversation_id=first["conversation_id"], image=high)
    sizes = body_sizes(provider_url)
    assert len(sizes) == turns
    return sizes


@pytest.mark.parametrize("field", ["edit", "mask", "attachments"])
def test_a_strangers_image_is_like_none_at_all(ada: ApiUser, stranger: ApiUser, field: str) -> None:
    hers = drawn(ada, "Draw a green house")["object_id"]
    never = "01a20000-0000-7000-8000-000000000000"
    own = drawn(stranger, "Draw a yellow boat")["object_id"] if field == "mask" else None
    answers = [
        refused(stranger, **{"edit": own, field: [one_id] if field == "attachments" else one_id})
        for one_id in (hers, never)
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    bodies = [answer.json() for answer in answers]
    for body in bodies:
        del body["request_id"]
    assert bodies[0] == bodies[1]


def test_an_edit_by_an_agent_that_does_not_draw_is_refused(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "agents" / "talker"
    folder.mkdir(parents=True)
    spec = "from app.agents._shared.specs import AgentSpec\n\n\ndef get_agent_spec() -> AgentSpec:\n"
    fields = 'key="assistant", display_name="T", description="Talks."'
    (folder / "spec.py").write_text(f"{spec}    return AgentSpec({fields}, prompt_path=None)\n")
    with running_server(database_url, provider_url, tmp_path, agents=tmp_path / "agents") as server:
        answer = refused(server.sign_up(), edit="01a20000-0000-7000-8000-000000000000")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "edit"


def drawn(user: ApiUser, text: str, **fields: Any) -> Json:
    """The one image of a designer's turn."""
    events: list[Event] = user.draw(text, **fields)
    assert events[-1]["type"] == "run.completed", events[-1]["error"]
    return one(events, "attachment.created")["attachment"]


def refused(user: ApiUser, **fields: Any) -> httpx.Response:
    return user.http.post("/v1/runs", json={"input": "Change it", **fields})


def forget(provider: Path) -> None:
    for path in provider.rglob("*"):
        if path.is_file():
            path.unlink()


def requests_to(provider_url: str) -> list[Json]:
    seen = httpx.get(provider_url.removesuffix("/v1") + "/offline/requests").json()
    return [request for request in seen if (request["method"], request["path"]) == ("POST", "/v1/responses")]


def last_request(provider_url: str) -> Json:
    return requests_to(provider_url)[-1]["body"]


def body_sizes(provider_url: str) -> list[int]:
    return [request["body_bytes"] for request in requests_to(provider_url)]


def images_in(request: Json) -> list[Json]:
    contents = [item["content"] for item in request["input"] if isinstance(item.get("content"), list)]
    return [part for content in contents for part in content if part["type"] == "input_image"]
