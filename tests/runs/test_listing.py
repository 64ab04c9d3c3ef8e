"""`GET /v1/runs`: what runs, and what has run."""

from typing import Any

import pytest

from tests.app_server import ApiUser


def listed(user: ApiUser, **query: Any) -> list[str]:
    answer = user.http.get("/v1/runs", params=query)
    assert answer.status_code == 200, answer.text
    return [run["id"] for run in answer.json()["data"]]


@pytest.mark.slow
def test_runs_are_listed_newest_first_and_by_conversation_and_status(ada: ApiUser, stranger: ApiUser) -> None:
    first = ada.ask("One", agent_key="assistant")[-1]["run"]
    second = ada.ask("Two", conversation_id=first["conversation_id"])[-1]["run"]
    failed = ada.ask("Three [offline: http=400]", agent_key="assistant")[-1]["run"]
    running = ada.start("Draw a house [offline: slow=2]", agent_key="designer")
    waiting = ada.start("Then a boat", conversation_id=running["conversation_id"], if_busy="queue")
    assert listed(ada) == [waiting["id"], running["id"], failed["id"], second["id"], first["id"]]
    assert listed(ada, conversation_id=first["conversation_id"]) == [second["id"], first["id"]]
    assert listed(ada, status="failed") == [failed["id"]]
    assert listed(ada, status="queued") == [waiting["id"]]
    assert listed(ada, status="completed", conversation_id=first["conversation_id"]) == [second["id"], first["id"]]
    page = ada.http.get("/v1/runs", params={"limit": 2}).json()
    assert listed(ada, limit=2, cursor=page["next_cursor"]) == [failed["id"], second["id"]]
    assert listed(stranger) == []
    assert ada.events(waiting["id"])[-1]["type"] == "run.completed"


def test_an_unknown_status_is_refused_by_name(ada: ApiUser) -> None:
    answer = ada.http.get("/v1/runs", params={"status": "done"})
    (fault,) = answer.json()["errors"]
    assert (answer.status_code, fault["field"]) == (422, "status")
    assert "queued, running, completed, failed, cancelled" in fault["message"]


def test_runs_of_a_shared_conversation_are_listed_for_its_readers_alone(
    ada: ApiUser, colleague: ApiUser, stranger: ApiUser
) -> None:
    run = ada.ask("One", agent_key="assistant")[-1]["run"]
    query = {"conversation_id": run["conversation_id"]}
    assert {user.http.get("/v1/runs", params=query).status_code for user in (colleague, stranger)} == {404}
    ada.http.patch(f"/v1/conversations/{run['conversation_id']}", json={"visibility": "tenant"})
    assert listed(colleague, **query) == [run["id"]]
    assert listed(colleague) == []
    assert stranger.http.get("/v1/runs", params=query).status_code == 404
    assert ada.http.delete(f"/v1/members/{colleague.id}").status_code == 204
    assert colleague.http.get("/v1/runs", params=query).status_code in (401, 403)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_reconnect_without_a_key_buys_nothing(ada: ApiUser, accept: str) -> None:
    body = {"input": "Hello", "agent_key": "assistant"}
    for last in ("0", "7"):
        answer = ada.http.post("/v1/runs", json=body, headers={"Accept": accept, "Last-Event-ID": last})
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_key_required")
    assert listed(ada) == []
    assert ada.http.get("/v1/conversations").json()["data"] == []
    key = {"Accept": accept, "Last-Event-ID": "0", "Idempotency-Key": "once"}
    assert [ada.http.post("/v1/runs", json=body, headers=key).is_success for _ in range(2)] == [True, True]
    assert len(listed(ada)) == 1
