"""What the watch over all tests' replies (tests/replies.py) notices, so that one that sees nothing is noticed."""

from typing import Any

import httpx
import pytest

from tests.app_server import ApiUser, one
from tests.replies import event_faults, faults_of

PROBLEM = {"Content-Type": "application/problem+json"}
# Method, path and reply -> a word of the fault.
UNDOCUMENTED: list[tuple[str, str, httpx.Response, str]] = [
    ("GET", "/v1/agents", httpx.Response(418, json={}), "does not name"),
    ("GET", "/v1/agents", httpx.Response(200, text="agents"), "application/json"),
    ("GET", "/v1/agents", httpx.Response(200, json={"agents": []}), '"data"'),
    ("GET", "/v1/agents", httpx.Response(404, json={"code": "gone"}, headers=PROBLEM), '"title"'),
    ("DELETE", "/v1/tokens/current", httpx.Response(204, headers={"Content-Type": "application/json"}), "nothing"),
    ("HEAD", "/v1/files/x", httpx.Response(202, text=""), "does not name"),
    ("GET", "/v1/nowhere", httpx.Response(200, json={}), "no such operation"),
]


@pytest.mark.parametrize(("method", "path", "reply", "word"), UNDOCUMENTED)
def test_a_reply_that_the_document_does_not_name_is_a_fault(
    method: str, path: str, reply: httpx.Response, word: str
) -> None:
    reply.request = httpx.Request(method, f"http://easel{path}")
    faults = faults_of(reply, body=True)
    assert any(word in fault for fault in faults), faults


@pytest.mark.parametrize(
    "event",
    [{"type": "run.begun"}, {"type": "text.delta", "seq": 1, "run_id": "1"}, {"type": "agent.changed", "seq": 1}],
)
def test_an_event_that_the_document_does_not_name_is_a_fault(event: dict[str, Any]) -> None:
    assert event_faults(event)


def test_what_the_document_names_is_no_fault(ada: ApiUser) -> None:
    reply = ada.http.get("/v1/agents")
    assert faults_of(reply, body=True) == []
    reply = ada.http.get("/v1/nowhere")
    assert faults_of(reply, body=True) == []
    created = one(ada.ask("Hello"), "run.created")
    assert event_faults(created) == []
