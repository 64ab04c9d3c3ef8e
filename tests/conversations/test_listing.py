"""Which conversations there are, the last active first, and what each of them is at."""

from typing import Any

import pytest

from tests.app_server import ApiUser

SLOW = "Draw a house [offline: slow=2]"

Json = dict[str, Any]


def titles(page: Json) -> list[str]:
    return [conversation["title"] for conversation in page["data"]]


def listed(user: ApiUser, **query: Any) -> Json:
    answer = user.http.get("/v1/conversations", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ask(user: ApiUser, text: str, **fields: Any) -> str:
    """The conversation of a run that has ended."""
    return str(user.ask(text, agent_key="assistant", **fields)[0]["run"]["conversation_id"])


def test_the_last_active_conversation_comes_first(ada: ApiUser) -> None:
    first, _, third = (ask(ada, name) for name in ("One", "Two", "Three"))
    assert titles(listed(ada)) == ["Three", "Two", "One"]
    ask(ada, "Again", conversation_id=first)
    assert titles(listed(ada)) == ["One", "Three", "Two"]
    ada.http.patch(f"/v1/conversations/{third}", json={"title": "Drei"})
    assert titles(listed(ada)) == ["Drei", "One", "Two"]


def test_a_conversation_that_gets_a_run_while_it_is_paged_disturbs_no_other(ada: ApiUser) -> None:
    talks = {name: ask(ada, name) for name in ("A", "B", "C", "D", "E", "F")}
    first = listed(ada, limit=2)
    assert titles(first) == ["F", "E"]
    # The one that the cursor names moves up, and one that was not listed yet.
    ask(ada, "Again", conversation_id=talks["E"])
    ask(ada, "Again", conversation_id=talks["C"])
    second = listed(ada, limit=2, cursor=first["next_cursor"])
    third = listed(ada, limit=2, cursor=second["next_cursor"])
    assert titles(second) + titles(third) == ["D", "B", "A"]
    assert third["next_cursor"] is None
    assert titles(listed(ada, limit=2)) == ["C", "E"]


def test_a_cursor_shows_nothing_of_others_and_a_bad_one_is_refused(
    ada: ApiUser, stranger: ApiUser, colleague: ApiUser
) -> None:
    for name in ("A", "B", "C"):
        ask(ada, name)
    cursor = listed(ada, limit=1)["next_cursor"]
    assert titles(listed(ada, cursor=cursor)) == ["B", "A"]
    for other in (stranger, colleague):
        assert listed(other, cursor=cursor) == {"data": [], "next_cursor": None}
    for bad in ("x", "0190-not-a-cursor", cursor[:-1], f"{cursor}AAAA", "%00"):
        answer = ada.http.get("/v1/conversations", params={"cursor": bad})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "cursor"), bad
        assert "next_cursor" in answer.json()["errors"][0]["message"]


@pytest.mark.slow
def test_a_conversation_tells_which_run_it_is_at(ada: ApiUser, colleague: ApiUser) -> None:
    run = ada.start(SLOW, agent_key="designer")
    waiting = ada.start("Then a boat", conversation_id=run["conversation_id"], if_busy="queue")
    ask(ada, "Another")
    other, busy = listed(ada)["data"]
    path = f"/v1/conversations/{run['conversation_id']}"
    assert (other["active_run"], busy["active_run"]["id"]) == (None, run["id"])
    assert ada.http.get(path).json()["active_run"]["conversation_id"] == run["conversation_id"]
    # Who reads a shared conversation may follow it.
    ada.http.patch(path, json={"visibility": "tenant"})
    shared = colleague.http.get("/v1/conversations", params={"shared": True}).json()["data"][0]
    assert colleague.events(shared["active_run"]["id"])[-1]["type"] == "run.completed"
    assert ada.http.get(path).json()["active_run"]["id"] in (waiting["id"], run["id"])
    assert ada.events(waiting["id"])[-1]["type"] == "run.completed"
    assert ada.http.get(path).json()["active_run"] is None
