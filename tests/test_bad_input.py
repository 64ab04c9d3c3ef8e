"""What cannot be done is refused before anything is written, and the refusal says what to do."""

import json
import time
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest

from tests import timeouts
from tests.app_server import ApiUser, AppServer, kinds

pytestmark = pytest.mark.proof(33, "small refusals")

MEGABYTE = 1024 * 1024
PILE = "\N{PILE OF POO}"

# body of POST /v1/runs -> code, faulty field, what was given, a word of what is allowed
REFUSED_RUNS: dict[str, tuple[dict[str, Any], str, str, str, str]] = {
    "unknown agent": ({"input": "Hi", "agent_key": "sculptor"}, "unknown_agent", "agent_key", "'sculptor'", "designer"),
    "unknown option": ({"image": {"sise": "auto"}}, "invalid_option", "image.sise", "'auto'", "size"),
    "impossible size": ({"image": {"size": "17x17"}}, "invalid_option", "image.size", "'17x17'", "multiples of 16"),
    "impossible quality": ({"image": {"quality": "best"}}, "invalid_option", "image.quality", "'best'", "medium"),
    "impossible number": ({"image": {"partial_images": 9}}, "invalid_option", "image.partial_images", "9", "0 to 3"),
    "options at odds": (
        {"image": {"format": "jpeg", "background": "transparent"}},
        "invalid_option",
        "image.background",
        "'transparent'",
        "png",
    ),
    "input of a wrong type": ({"input": 7}, "invalid_request", "input", "7", "string"),
    "options of a wrong type": ({"image": "large"}, "invalid_request", "image", "'large'", "object"),
    "unknown tool": (
        {"tool_choice": "web_search"},
        "invalid_request",
        "tool_choice",
        "'web_search'",
        "image_generation",
    ),
    "unknown field": ({"colour": "red"}, "invalid_request", "colour", "'red'", "unknown field"),
    "empty input": ({"input": ""}, "invalid_request", "input", "''", "at least 1"),
    "blank input": ({"input": " \n "}, "invalid_request", "input", r"' \n '", "at least one character"),
    "input no database takes": ({"input": "a\0b"}, "invalid_request", "input", r"'a\x00b'", "U+0000"),
    "a model no database takes": (
        {"image": {"model": "a\0"}},
        "invalid_option",
        "image.model",
        r"'a\x00'",
        "the name of a model",
    ),
    "half a pair": ({"image": {"model": "a\ud83d"}}, "invalid_option", "image.model", r"'a\ud83d'", "the name"),
    "a field named by half a pair": ({"image": {"a\ud83d": "red"}}, "invalid_option", "image.a?", "'red'", "allowed: "),
    "long input": ({"input": "x" * 32_001}, "invalid_request", "input", "'xxx", "at most 32000"),
    "no input": ({"input": None}, "invalid_request", "input", "None", "string"),
}


@pytest.mark.parametrize("name", REFUSED_RUNS)
def test_an_impossible_run_is_refused_by_field_given_and_allowed(ada: ApiUser, name: str) -> None:
    fields, code, field, given, allowed = REFUSED_RUNS[name]
    # With escapes, as half a surrogate pair cannot be sent otherwise.
    body = json.dumps({"input": "Draw a house", "agent_key": "designer", **fields})
    answer = ada.http.post("/v1/runs", content=body, headers={"Content-Type": "application/json"})
    received = problem(answer, 422, code)
    fault = next((fault for fault in received["errors"] if fault["field"].startswith(field)), None)
    assert fault, received
    assert fault["given"].startswith(given)
    assert allowed in fault["message"]
    assert field in received["detail"] or given in received["detail"]
    nothing_written(ada)


def test_an_unknown_conversation_is_not_there(ada: ApiUser) -> None:
    for conversation_id in ("01890000-0000-7000-8000-000000000000", "mine"):
        body = {"input": "Hi", "conversation_id": conversation_id}
        received = problem(ada.http.post("/v1/runs", json=body), 404, "not_found")
        assert "conversation" in received["detail"]
    nothing_written(ada)


def test_a_body_that_is_no_json_is_refused(ada: ApiUser) -> None:
    for content in (b'{"input": "Hi"', b"input=Hi", b"\xff\xfe", b"[]", b'"Hi"', b""):
        answer = ada.http.post("/v1/runs", content=content, headers={"Content-Type": "application/json"})
        assert problem(answer, 422, "invalid_request")["errors"], content
    nothing_written(ada)


def test_a_body_that_says_it_is_too_large_is_refused_by_its_length(ada: ApiUser) -> None:
    body = {"input": "Hi", "image": {"size": "x" * MEGABYTE}}
    received = problem(ada.http.post("/v1/runs", json=body), 413, "too_large")
    assert str(MEGABYTE) in received["detail"]
    assert "REQUEST_BODY_MAX_MB" in received["detail"]
    nothing_written(ada)


def test_a_body_that_turns_out_too_large_is_refused_alike(ada: ApiUser) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"input": "'
        for _ in range(17):
            yield b"x" * (MEGABYTE // 16)
        yield b'"}'

    answer = ada.http.post("/v1/runs", content=chunks(), headers={"Content-Type": "application/json"})
    received = problem(answer, 413, "too_large")
    assert str(MEGABYTE) in received["detail"]
    nothing_written(ada)


def test_a_request_of_nobody_learns_how_to_sign_in(server: AppServer) -> None:
    received = problem(server.anyone().post("/v1/runs", json={"input": "Hi"}), 401, "unauthenticated")
    assert "Authorization: Bearer" in received["detail"]


def test_a_busy_conversation_names_the_run_that_is_in_the_way(ada: ApiUser) -> None:
    run = ada.start("Draw a slow house [offline: slow=5]", agent_key="designer")
    again = {"input": "And a tree", "conversation_id": run["conversation_id"]}
    received = problem(ada.http.post("/v1/runs", json=again), 409, "conversation_busy")
    assert received["run_id"] == run["id"]
    assert "PUT /v1/runs/{id}/cancellation" in received["detail"]
    assert ada.http.put(f"/v1/runs/{received['run_id']}/cancellation").status_code == 202
    assert kinds(ada.events(run["id"]))[-1] == "run.cancelled"
    assert "And a tree" not in [message["text"] for message in ada.messages(run["conversation_id"])]
    assert ada.http.post("/v1/runs", json={**again, "agent_key": "assistant"}).status_code == 202


@pytest.mark.parametrize("path", ["/v1/conversations", "/v1/attachments", "/v1/api-keys"])
@pytest.mark.parametrize(
    ("name", "value"), [("limit", "0"), ("limit", "101"), ("limit", "ten"), ("cursor", "next"), ("cursor", "")]
)
def test_a_page_that_cannot_be_is_refused_by_its_name(ada: ApiUser, path: str, name: str, value: str) -> None:
    received = problem(ada.http.get(path, params={name: value}), 422, "invalid_request")
    (fault,) = received["errors"]
    assert (fault["field"], fault["given"]) == (name, repr(value))
    assert name in received["detail"]


@pytest.mark.parametrize("position", [-1, 2**63, 10**30])
def test_a_position_that_no_stream_can_have_is_rejected(ada: ApiUser, position: int) -> None:
    path = f"/v1/runs/{ada.start('Hello')['id']}/events"
    by_query = ada.http.get(path, params={"after": position})
    by_header = ada.http.get(path, headers={"Last-Event-ID": str(position)})
    assert problem(by_query, 422, "invalid_request")["errors"][0]["field"] == "after"
    assert problem(by_header, 422, "invalid_request")["errors"][0]["field"] == "Last-Event-ID"


@pytest.mark.parametrize(
    ("field", "value"),
    [("email", "not an address"), ("password", "short"), ("tenant_name", " "), ("tenant_name", "x" * 201)],
)
def test_a_sign_up_that_cannot_be_is_refused_by_field(server: AppServer, field: str, value: str) -> None:
    body = {"email": "ada@example.com", "password": "correct horse battery", "tenant_name": "Ada's", field: value}
    answer = server.anyone().post("/v1/signup", json=body)
    (fault,) = problem(answer, 422, "invalid_request")["errors"]
    assert fault["field"] == field
    assert fault["message"]
    assert field != "password" or value not in answer.text


def test_an_address_or_method_that_does_not_exist_is_a_problem_too(ada: ApiUser) -> None:
    problem(ada.http.get("/v1/nowhere"), 404, "not_found")
    assert problem(ada.http.put("/v1/conversations"), 405)["title"]


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The answer's problem, with all that every problem has."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    received = cast(dict[str, Any], answer.json())
    assert received["status"] == status
    assert code is None or received["code"] == code
    assert received["type"].endswith(received["code"])
    assert received["title"]
    assert received["detail"]
    assert received["request_id"] == answer.headers["x-request-id"]
    return received


def nothing_written(user: ApiUser) -> None:
    assert user.http.get("/v1/conversations").json() == {"data": [], "next_cursor": None}
    assert user.http.get("/v1/attachments").json()["data"] == []


# Each is just under what a body may have; of some every item is a fault.
LARGE_FAULTS: dict[str, tuple[str, str, Any]] = {
    "a list of numbers": ("/v1/api-keys", "scopes", [0] * 300_000),
    "a list of unknown words": ("/v1/api-keys", "scopes", ["x"] * 150_000),
    "a list of long words": ("/v1/api-keys", "scopes", [PILE * 40_000] * 6),
    "countless fields": ("/v1/runs", "", None),
    "countless options": ("/v1/runs", "image", {f"option{n}": 0 for n in range(50_000)}),
    "an option with a long name": ("/v1/runs", "image", {"x" * 900_000: 0}),
    "a field with a long name": ("/v1/runs", "x" * 900_000, 0),
    "a long word": ("/v1/runs", "agent_key", PILE * 200_000),
    "many attachments": ("/v1/runs", "attachments", ["x"] * 150_000),
    "a long id": ("/v1/runs", "edit", "x" * 900_000),
}


@pytest.mark.parametrize("name", LARGE_FAULTS)
def test_a_large_fault_has_a_small_answer_soon(ada: ApiUser, name: str) -> None:
    path, field, value = LARGE_FAULTS[name]
    fields = {f"f{n}": 0 for n in range(80_000)} if value is None else {field: value}
    body = json.dumps({**fields, "name": "n", "input": "Hi"}, ensure_ascii=False).encode()
    assert 200_000 < len(body) < MEGABYTE
    began = time.monotonic()
    answer = ada.http.post(path, content=body, headers={"Content-Type": "application/json"})
    took = time.monotonic() - began
    assert answer.status_code in {404, 422}
    assert len(answer.content) <= 4096
    assert len(answer.json().get("errors", ())) <= 20
    assert ("send 100 fields at most" in answer.text) == (name == "countless fields")
    assert took < 0.4 * timeouts.SCALE
    nothing_written(ada)


def test_the_first_faults_are_told_and_all_are_counted(ada: ApiUser) -> None:
    body = {"input": "Hi", **{f"{n}{PILE * 40}": PILE * 200 for n in range(60)}}
    answer = ada.http.post("/v1/runs", json=body)
    received = problem(answer, 422, "invalid_request")
    assert 2 < len(received["errors"]) <= 20
    assert "in 60 places" in received["detail"]
    assert len(answer.content) <= 4096
