"""What a run would cost, before it is started: the same refusals, and nothing left behind."""

from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests import made_streams
from tests.agent_folders import write_agents
from tests.app_server import ApiUser, AppServer, running_server
from tests.tables import rows
from tests.usage.books import Json, nano


def estimate(user: ApiUser, said: str = "Draw a red house", **fields: Any) -> Json:
    answer = user.http.post("/v1/runs/estimate", json={"input": said, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def items(found: Json) -> dict[str, tuple[int, str]]:
    return {item["kind"]: (item["quantity"], item["basis"]) for item in found["items"]}


def test_an_estimate_starts_nothing_and_counts_nothing(ada: ApiUser, database: str) -> None:
    talk = ada.ask("Hello")[0]["run"]["conversation_id"]
    tenant = {"tenant": ada.signed_up["tenant"]["id"]}
    counts = "SELECT count(DISTINCT r.id), count(DISTINCT m.id), max(c.updated_at) FROM conversations c"
    counts = f"{counts} JOIN runs r USING (tenant_id) JOIN messages m USING (tenant_id) WHERE c.tenant_id = :tenant"
    before = rows(database, counts, tenant)
    found = estimate(ada, conversation_id=talk)
    assert rows(database, counts, tenant) == before
    assert found["currency"] == "USD"


def test_a_text_is_estimated_by_its_characters_and_its_history(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with agents(database_url, provider_url, tmp_path) as server:
        ada = server.sign_up()
        found = estimate(ada, "x" * 301, agent_key="talker")
        assert items(found) == {"input_tokens": (101, "assumed"), "output_tokens": (400, "assumed")}
        assert nano(found["cost_usd"]) == 101 * 2_000 + 400 * 10_000
        assert nano(found["reserved_usd"]) == 101 * 2_000 + 3_000 * 10_000
        handing_over = estimate(ada, "x" * 301, agent_key="first")
        assert nano(handing_over["reserved_usd"]) == 101 * 2_000 + 6_000 * 10_000
        events = ada.ask("Hello", agent_key="talker")
        talk = events[0]["run"]["conversation_id"]
        said = sum(len(message["text"]) for message in ada.messages(talk))
        later = estimate(ada, "x" * 300, conversation_id=talk)
        assert items(later)["input_tokens"] == (-(-(300 + said) // 3), "assumed")


def test_a_picture_is_estimated_by_its_options(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with agents(database_url, provider_url, tmp_path) as server:
        ada = server.sign_up()

        def drawn(**image: Any) -> tuple[int, str]:
            return items(estimate(ada, "x" * 30, agent_key="painter", image=image))["image_output_tokens"]

        published = {"model": "gpt-image-2", "size": "1024x1024", "partial_images": 0}
        assert drawn(**published, quality="high") == (7024, "published")
        assert drawn(**{**published, "partial_images": 2}, quality="low") == (196 + 200, "published")
        assert drawn(**published, quality="auto") == (7024, "assumed")
        found = estimate(ada, "x" * 30, agent_key="painter", image={**published, "quality": "low"})
        assert items(found)["input_tokens"] == (10 + 1500, "assumed")
        assert items(found)["output_tokens"] == (1300, "assumed")
        assert nano(found["cost_usd"]) == 1510 * 2_000 + 1300 * 10_000 + 196 * 30_000
        uploaded = ada.http.post("/v1/attachments", files={"file": ("a.png", made_streams.png("red", (256, 256)))})
        given = estimate(
            ada, "x" * 30, agent_key="painter", image={**published, "quality": "low"}, edit=uploaded.json()["object_id"]
        )
        assert items(given)["image_input_tokens"] == (64, "assumed")
        assert items(given)["input_tokens"] == (10 + 1500 + 64, "assumed")


def test_an_image_part_is_what_is_charged(server: AppServer, ada: ApiUser) -> None:
    image = {"size": "1024x1024", "quality": "low", "partial_images": 1, "model": "gpt-image-2"}
    found = estimate(ada, agent_key="designer", image=image)
    run = ada.ask("Draw a red house", agent_key="designer", image=image)[-1]["run"]
    charged = ada.http.get("/v1/usage/entries", params={"run_id": run["id"]}).json()["data"]
    (output,) = [entry for entry in charged if entry["kind"] == "image_output_tokens"]
    assert items(found)["image_output_tokens"] == (output["quantity"], "published")
    assert Decimal(found["reserved_usd"]) > Decimal(run["cost_usd"])


def test_a_model_without_a_price_has_no_estimate(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path, agent_default_model="gpt-9-nova") as server:
        found = estimate(server.sign_up(), "Hello")
        assert (found["cost_usd"], found["reserved_usd"]) == (None, None)
        priced = {item["kind"]: item["cost_usd"] for item in found["items"]}
        assert priced["input_tokens"] is None
        assert priced["image_output_tokens"] is not None


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"agent_key": "nobody"}, 422, "unknown_agent"),
        ({"image": {"quality": "best"}}, 422, "invalid_option"),
        ({"conversation_id": "019ab3f0-5d1c-7d5e-9a57-0c2f6f1f2b11"}, 404, "not_found"),
        ({"attachments": ["019ab3f0-5d1c-7d5e-9a57-0c2f6f1f2b11"]}, 404, "not_found"),
        ({"input": ""}, 422, "validation_failed"),
    ],
)
def test_what_a_start_refuses_is_refused_alike(ada: ApiUser, fields: Json, status: int, code: str) -> None:
    body = {"input": "Draw a house", "agent_key": "designer", **fields}
    answers = [ada.http.post(path, json=body) for path in ("/v1/runs/estimate", "/v1/runs")]
    assert [answer.status_code for answer in answers] == [status, status]
    told = [{name: answer.json()[name] for name in ("code", "detail")} for answer in answers]
    assert told[0] == told[1]


def test_another_users_conversation_is_not_there(ada: ApiUser, stranger: ApiUser, colleague: ApiUser) -> None:
    talk = ada.ask("Hello")[0]["run"]["conversation_id"]
    for user in (stranger, colleague):
        body = {"input": "Hello", "conversation_id": talk}
        assert user.http.post("/v1/runs/estimate", json=body).status_code == 404
    ada.http.patch(f"/v1/conversations/{talk}", json={"visibility": "tenant"})
    assert colleague.http.post("/v1/runs/estimate", json={"input": "Hello", "conversation_id": talk}).status_code == 403


def agents(database_url: str, provider_url: str, directory: Path) -> AbstractContextManager[AppServer]:
    specs: dict[str, Json] = {
        "talker": {},
        "painter": {"tool_keys": ("image_generation",)},
        "first": {"handoff_keys": ("talker",)},
    }
    folder = write_agents(directory / "agents", specs)
    return running_server(database_url, provider_url, directory / "data", agents=folder)
