"""What the provider says reaches the operator's log, without what names the account, and never a user."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.app_server import running_server
from tests.made_streams import stream_of, text
from tests.misbehaving_provider import misbehaving
from tests.stream_server import serving

pytestmark = pytest.mark.proof(30, "the provider's words")

SECRETS = ("sk-proj-Zm9vYmFy_1-2", "org-Canary123", "proj_Canary456")
SAID = f"Zeppelin: key {SECRETS[0]} of {SECRETS[1]} in {SECRETS[2]}."

Json = dict[str, Any]

NONE: list[Json] = []
RESPONSE: Json = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "m",
    "output": NONE,
    "tools": NONE,
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "status": "failed",
}
FAULT: Json = {"type": "image_generation_user_error", "code": "zeppelin", "message": SAID}
IMAGE: Json = {"id": "ig_1", "type": "image_generation_call", "status": "failed", "result": None}
STREAMS: dict[str, list[Json]] = {
    "failed": [{"type": "response.failed", "response": {**RESPONSE, "error": {"code": "zeppelin", "message": SAID}}}],
    "error": [{"type": "error", "error": {"type": "x", "code": "zeppelin", "message": SAID, "param": None}}],
    "incomplete": [
        {
            "type": "response.incomplete",
            "response": {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": SAID}},
        }
    ],
}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500])
def test_a_refusal_is_told_in_our_own_words(
    database_url: str, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"error": {"type": "zeppelin", "code": "zeppelin", "message": SAID}}).encode()
    with misbehaving() as provider:
        provider.answer(status, body, {"Content-Type": "application/json"})
        assert_not_told(database_url, provider.url, tmp_path, caplog)


@pytest.mark.parametrize("stream", STREAMS)
def test_a_response_that_fails_is_told_in_our_own_words(
    database_url: str, tmp_path: Path, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    created = {"type": "response.created", "response": {**RESPONSE, "status": "in_progress"}}
    frames = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in (created, *STREAMS[stream])]
    with serving("".join(frames).encode()) as provider:
        assert_not_told(database_url, provider.url, tmp_path, caplog)


def test_an_image_that_fails_is_told_in_our_own_words(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moderated = {**FAULT, "code": "moderation_blocked"}
    moderated["moderation_details"] = {"stage": "output", "categories": ["zeppelin", "violence/graphic"]}
    first, second = ({**IMAGE, "id": f"ig_{number}", "error": fault} for number, fault in enumerate((FAULT, moderated)))
    with serving(stream_of((first, []), (second, []), text(["No."]))) as provider:
        told = assert_not_told(database_url, provider.url, tmp_path, caplog)
    assert "(violence)" in told


def assert_not_told(database_url: str, provider_url: str, directory: Path, caplog: pytest.LogCaptureFixture) -> str:
    """All that the user reads of one run, without the provider's words, which are in the log."""
    with running_server(database_url, provider_url, directory) as server:
        ada = server.sign_up("Ada's")
        events = ada.draw("Draw a house")
        run = ada.http.get(f"/v1/runs/{events[0]['run_id']}").json()
    told = json.dumps([events, run])
    said = "\n".join(str(vars(record).get("said", "")) for record in caplog.records)
    assert "zeppelin" in said.lower()
    for secret in SECRETS:
        assert secret not in told + said + caplog.text
    assert "zeppelin" not in told.lower()
    return told
