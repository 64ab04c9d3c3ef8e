"""The log of a service can be followed: JSON lines alone, and who asked for what on each that knows it."""

import json
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from tests import timeouts
from tests.app_server import ApiUser, AppServer, running_server
from tests.json_log import JsonLog, attached, find, lines_of

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
NEW_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
MALFORMED_IDS = {
    "empty": "",
    "too long": "a" * 129,
    "with a space": "two words",
    "JSON": 'a","level":"critical',
    "a quote": 'quote"mark',
    "a line end of Unicode": "a\x85b",
    "a terminal's command": "a\x9b2J",
    "begins with a dash": "-rf",
    "a token": "easel_at_" + "x" * 43,
    "a key of Easel inside": "id=easel_sk_" + "x" * 43,
    "a key of the provider": "sk-proj-123456789012345678901234",
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9.e30.abc",  # pragma: allowlist secret
}
MALFORMED_TRACEPARENTS = (
    "",
    TRACE_ID,
    f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
    f"00-{'0' * 32}-{SPAN_ID}-01",
    f"00-{TRACE_ID}-{'0' * 16}-01",
    f"ff-{TRACE_ID}-{SPAN_ID}-01",
    f"00-{TRACE_ID}-{SPAN_ID}-01-more",
    f"00-{TRACE_ID}-{SPAN_ID}",
)
# What Python would print by itself.
PRINTED = """
import asyncio, gc, logging, threading, warnings
from app import logs

logs.configure("debug")
warnings.warn("deprecated\\nby us", DeprecationWarning)
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()

class Failing:
    def __del__(self):
        raise RuntimeError("ignored")

Failing()
gc.collect()

async def leave_a_failure():
    async def fail():
        raise ValueError("never retrieved")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    del task
    gc.collect()

asyncio.run(leave_a_failure())
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(logging.getLogger("any"), level)("one\\ntwo \\u2028 \\x85 \\x1b[2J \\x9b2J \\ud800", extra={"a": "b\\nc"})
"""


@pytest.fixture
def log() -> Generator[JsonLog]:
    with attached() as log:
        yield log


def test_a_well_formed_id_is_taken_over(ada: ApiUser, log: JsonLog) -> None:
    for given in (
        "a",
        "01JABCDEFGHJKMNPQRSTVWXYZ0",  # pragma: allowlist secret
        "req_123",
        "Root=1-67891233-abcdef",
        "a" * 128,
        secrets.token_hex(),
    ):
        answer = ada.http.get("/v1/nowhere", headers={"X-Request-Id": given})
        assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == given
        line = log.wait_for("request", request_id=given)
        assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/nowhere", 404)
        assert "trace_id" not in line


@pytest.mark.parametrize("fault", MALFORMED_IDS)
def test_a_malformed_id_gets_a_new_one(server: AppServer, log: JsonLog, fault: str) -> None:
    given = MALFORMED_IDS[fault]
    answer = server.anyone().get("/v1/nowhere", headers=[(b"X-Request-Id", given.encode("latin-1"))])
    assert NEW_ID(answer.headers["X-Request-Id"])
    assert log.wait_for("request", request_id=answer.headers["X-Request-Id"])
    assert not given or given not in log.text


def test_of_two_ids_neither_is_taken_over(server: AppServer) -> None:
    answer = server.anyone().get("/v1/nowhere", headers=[("X-Request-Id", "one"), ("X-Request-Id", "two")])
    assert NEW_ID(answer.headers["X-Request-Id"])


def test_a_trace_is_taken_over(server: AppServer, log: JsonLog) -> None:
    http = server.anyone()
    alone = http.get("/v1/nowhere", headers={"traceparent": TRACEPARENT})
    assert alone.headers["X-Request-Id"] == alone.json()["request_id"] == TRACE_ID
    assert log.wait_for("request", request_id=TRACE_ID)["trace_id"] == TRACE_ID
    later = http.get("/v1/nowhere", headers={"traceparent": f"cc-{TRACE_ID}-{SPAN_ID}-01-more"})
    assert later.headers["X-Request-Id"] == TRACE_ID
    both = http.get("/v1/nowhere", headers={"traceparent": TRACEPARENT, "X-Request-Id": "of-the-gateway"})
    assert both.headers["X-Request-Id"] == "of-the-gateway"
    assert log.wait_for("request", request_id="of-the-gateway")["trace_id"] == TRACE_ID


def test_a_malformed_trace_is_not_taken_over(server: AppServer, log: JsonLog) -> None:
    http = server.anyone()
    for given in MALFORMED_TRACEPARENTS:
        answer = http.get("/v1/nowhere", headers={"traceparent": given})
        assert NEW_ID(answer.headers["X-Request-Id"]), given
        assert "trace_id" not in log.wait_for("request", request_id=answer.headers["X-Request-Id"])


def test_the_line_of_a_request_names_tenant_and_user(ada: ApiUser, log: JsonLog) -> None:
    mine = {"tenant_id": ada.signed_up["tenant"]["id"], "user_id": ada.id}
    key = ada.http.post("/v1/api-keys", json={"name": "Mine"}).json()["key"]
    for path in ("/v1/me", "/v1/conversations", "/v1/attachments", "/v1/usage", "/v1/tokens"):
        for bearer in (ada.signed_up["access_token"], key):
            answer = ada.http.get(path, headers={"Authorization": f"Bearer {bearer}"})
            line = log.wait_for("request", request_id=answer.headers["X-Request-Id"])
            assert mine.items() <= line.items(), line
    signed_in = ada.http.post("/v1/tokens", json={"email": ada.email, "password": "correct horse battery"})
    for event in ("request", "auth.signed_in"):
        assert log.wait_for(event, request_id=signed_in.headers["X-Request-Id"])["user_id"] == ada.id
    nobody = ada.http.get("/v1/me", headers={"Authorization": "Bearer none"})
    assert not mine.keys() & log.wait_for("request", request_id=nobody.headers["X-Request-Id"]).keys()


def test_a_request_that_was_sent_ahead_has_no_tags_of_the_one_before(
    ada: ApiUser, server: AppServer, log: JsonLog
) -> None:
    first = f"GET /v1/me HTTP/1.1\r\nHost: x\r\nX-Request-Id: first\r\nAuthorization: {authorization(ada)}\r\n\r\n"
    second = "GET /v1/second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    host, port = server.base_url.removeprefix("http://").split(":")
    with closing(socket.create_connection((host, int(port)), timeout=timeouts.ANSWER)) as connection:
        connection.sendall((first + second).encode())
        while connection.recv(65536):
            pass
    assert log.wait_for("request", request_id="first")["user_id"] == ada.id
    assert not {"user_id", "tenant_id"} & log.wait_for("request", path="/v1/second").keys()


def test_probes_are_quiet_until_they_fail(server: AppServer, log: JsonLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.readiness.FRESH_SECONDS", 0)
    http = server.anyone()
    for path in ("/livez", "/readyz"):
        assert http.get(path).status_code == 200
    http.get("/v1/nowhere", headers={"X-Request-Id": "after-the-probes"})
    log.wait_for("request", request_id="after-the-probes")
    assert not {"/livez", "/readyz"} & {line["path"] for line in log.find("request")}
    with monkeypatch.context() as patch:
        patch.setattr(server.uvicorn.app.state.broker, "ping", broken)
        assert http.get("/readyz").status_code == 500
    assert log.wait_for("request", path="/readyz")["status"] == 500
    assert http.get("/readyz").status_code == 200  # for whoever asks next


async def broken() -> None:
    raise RuntimeError("a fault that nobody foresaw")


def test_an_unforeseen_fault_is_logged_once_under_the_id_of_its_answer(
    server: AppServer, log: JsonLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.readiness.FRESH_SECONDS", 0)
    http = server.anyone()
    with monkeypatch.context() as patch:
        patch.setattr(server.uvicorn.app.state.broker, "ping", broken)
        answer = http.get("/readyz", headers={"X-Request-Id": "it-fails", "Origin": "http://localhost:3000"})
    assert http.get("/readyz").status_code == 200  # for whoever asks next
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"] == "it-fails"
    # A page of another origin may read it as well.
    assert answer.headers["Access-Control-Allow-Origin"]
    log.wait_for("request", request_id="it-fails", status=500)
    failed = log.wait_for("request.failed", request_id="it-fails")
    assert failed["level"] == "error"
    assert "a fault that nobody foresaw" in failed["exception"]
    told = [line["event"] for line in log.lines if "a fault that nobody foresaw" in line.get("exception", "")]
    assert told == ["request.failed"]


def test_a_connection_that_is_rejected_has_the_id_of_its_answer_in_the_log(server: AppServer, log: JsonLog) -> None:
    host, port = server.base_url.removeprefix("http://").split(":")
    with closing(socket.create_connection((host, int(port)), timeout=timeouts.ANSWER)) as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    problem = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert log.wait_for("connection.rejected", request_id=problem["request_id"])["peer"] == "127.0.0.1"


@pytest.mark.parametrize("trusted", [True, False])
def test_only_a_trusted_proxy_says_who_the_client_is(
    database_url: str, provider_url: str, tmp_path: Path, log: JsonLog, trusted: bool
) -> None:
    proxies = ["127.0.0.1"] if trusted else []
    with running_server(database_url, provider_url, tmp_path, trusted_proxies=proxies) as server:
        forwarded = {"proxied": "203.0.113.7", "spoofed": "198.51.100.1, 203.0.113.7", "garbled": 'a","b'}
        for name, value in forwarded.items():
            server.anyone().get("/v1/nowhere", headers={"X-Forwarded-For": value, "X-Request-Id": name})
        found = [log.wait_for("request", request_id=name)["client"] for name in forwarded]
    assert found == (["203.0.113.7", "203.0.113.7", None] if trusted else ["127.0.0.1"] * 3)


def test_a_run_that_is_stopped_while_it_waits_has_its_end_in_the_log(ada: ApiUser, log: JsonLog) -> None:
    first = ada.start("Draw a slow house [offline: slow=1]", agent_key="designer", image={"quality": "low"})
    body = {"input": "Hello", "conversation_id": first["conversation_id"], "if_busy": "queue"}
    answer = ada.http.post("/v1/runs", json=body)
    second = answer.json()
    ada.http.put(f"/v1/runs/{second['id']}/cancellation", headers={"X-Request-Id": "stops-it"})
    end = log.wait_for("run.end", run_id=second["id"])
    assert (end["outcome"], end["calls"], end["request_id"]) == ("cancelled", 0, "stops-it")
    assert end["run_request_id"] == answer.headers["X-Request-Id"]
    ada.http.put(f"/v1/runs/{first['id']}/cancellation")
    assert log.wait_for("run.end", run_id=first["id"])["outcome"] == "cancelled"


def test_a_chat_takes_three_lines(ada: ApiUser, log: JsonLog) -> None:
    """Its request's, its run's start and end; with an image, too."""
    ours = {"tenant_id": ada.signed_up["tenant"]["id"], "user_id": ada.id}
    for ask, text, images in ((ada.ask, "Hello", 0), (ada.draw, "Draw a house", 1)):
        run = ask(text)[-1]["run"]
        request = log.wait_for("request", run_id=run["id"])
        lines = [line for line in log.lines if line.get("request_id") == request["request_id"]]
        assert sorted(line["event"] for line in lines) == ["request", "run.end", "run.start"]
        assert all({**ours, "run_id": run["id"]}.items() <= line.items() for line in lines)
        (end,) = find(lines, "run.end")
        assert {"outcome": "completed", "images": images, "calls": 1, "level": "info"}.items() <= end.items()
        assert end["model"] == find(lines, "run.start")[0]["model"] == "gpt-6.1-sol"
        assert end["tokens"] >= end["input_tokens"] + end["output_tokens"] > 0
        assert (end["input_tokens"], end["cost_usd"]) == (run["usage"]["input_tokens"], run["cost_usd"])
        assert end["ms"] > 0
        assert request["ms"] > 0


def authorization(user: ApiUser) -> str:
    return str(user.http.headers["Authorization"])


def test_whatever_python_prints_is_a_line_of_json() -> None:
    done = subprocess.run([sys.executable, "-W", "always", "-c", PRINTED], capture_output=True, text=True, check=True)
    lines = [line for line in lines_of(done.stderr) if "Using selector" not in line["event"]]
    assert done.stdout == ""
    assert [line["logger"] for line in lines] == ["py.warnings", "app.logs", "app.logs", "asyncio", *["any"] * 5]
    warned, thread, ignored, never, *leveled = lines
    assert "deprecated\nby us" in warned["event"]
    assert (thread["event"], ignored["event"]) == ("thread.failed", "exception.ignored")
    assert [name in line["exception"] for name, line in (("ZeroDivision", thread), ("ignored", ignored))] == [True] * 2
    assert "never retrieved" in never["exception"]
    assert [line["level"] for line in leveled] == ["debug", "info", "warning", "error", "critical"]
    assert leveled[0]["a"] == "b\nc"
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", done.stderr)
