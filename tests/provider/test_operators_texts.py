"""Who is told what of a fault of the provider: users what they can do, operators the cause and what mends it."""

import json
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.app_server import AppServer, running_server
from tests.conftest import Postgres
from tests.json_log import JsonLog, attached
from tests.misbehaving_provider import MisbehavingProvider, misbehaving
from tests.servers import free_port

MODEL = "gpt-none-9"
IDLE_SECONDS = 0.7
KEY = "a-key-of-no-known-form-7Gh2"  # pragma: allowlist secret
OUT_OF_ORDER = "The service cannot draw or answer right now: tell whoever runs it."
NOT_NOW = "The service cannot draw or answer right now: try again in a moment."
PAGE = b"<!doctype html><title>Sign in to zeppelin</title>"
# What a user is not to read: settings, hosts, HTTP, the provider's words, models, keys.
NOT_FOR_USERS = re.compile(rf"[A-Z]{{2,}}_|127\.0\.0\.1|http|\d{{3}}|zeppelin|key|quota|{MODEL}|{KEY}", re.IGNORECASE)


def error(code: str | None, message: str = "") -> bytes:
    return json.dumps({"error": {"type": "x", "code": code, "message": f"zeppelin {message}"}}).encode()


@dataclass(frozen=True)
class Told:
    """A fault, the code of the failed run, the sentence for its user, and what the operator's sentence must hold."""

    status: int
    body: bytes
    code: str
    user: str
    operator: tuple[str, ...]
    content_type: str = "application/json"
    retryable: bool = False
    after_seconds: float = 0


FAULTS = {
    "the key is refused": Told(
        401,
        error("invalid_api_key", f"Incorrect API key provided: {KEY}."),
        "upstream_unauthorized",
        OUT_OF_ORDER,
        ("{url}/responses refused the key (HTTP 401)", "OPENAI_API_KEY"),
    ),
    "the key may not do this": Told(
        403, error(None), "upstream_unauthorized", OUT_OF_ORDER, ("{url}/responses refused the key (HTTP 403)",)
    ),
    "no quota is left": Told(
        429, error("insufficient_quota"), "upstream_quota", OUT_OF_ORDER, ("no quota left (HTTP 429)", "add credit")
    ),
    "the model is unknown": Told(
        404,
        error("model_not_found"),
        "upstream_not_found",
        OUT_OF_ORDER,
        (f"does not know the model '{MODEL}' (HTTP 404)", "AGENT_DEFAULT_MODEL"),
    ),
    "the model is unknown, as the Responses API says it": Told(
        400,
        error("model_not_found"),
        "upstream_not_found",
        OUT_OF_ORDER,
        (f"does not know the model '{MODEL}' (HTTP 400)", "AGENT_DEFAULT_MODEL"),
    ),
    "a page of HTML comes as if all were well": Told(
        200,
        PAGE,
        "upstream_unreadable",
        OUT_OF_ORDER,
        ("{url}/responses sent a page of HTML in place of the API's answer (HTTP 200)", "OPENAI_BASE_URL"),
        "text/html; charset=utf-8",
    ),
    "the address has no such page": Told(
        404,
        PAGE,
        "upstream_unreadable",
        OUT_OF_ORDER,
        ("{url}/responses sent a page of HTML in place of the API's answer (HTTP 404)", "OPENAI_BASE_URL"),
        "text/html",
    ),
    "a gateway has no provider behind it": Told(
        502, PAGE, "upstream_unavailable", NOT_NOW, ("sent a page of HTML", "(HTTP 502)"), "text/html", retryable=True
    ),
    "the provider is overloaded": Told(
        503, error(None), "upstream_unavailable", NOT_NOW, ("cannot serve now (HTTP 503)", "status"), retryable=True
    ),
    "too much is asked": Told(
        429,
        error("rate_limit_exceeded"),
        "upstream_rate_limited",
        "The provider is busy: try again in a moment.",
        ("too many requests or tokens a minute (HTTP 429)", "WORKER_CONCURRENCY"),
        retryable=True,
    ),
    "a stream is no JSON": Told(
        200,
        b"data: zeppelin\n\n",
        "upstream_unreadable",
        "The provider's answer could not be read: try again.",
        ("sent what is no answer of the Responses API",),
        "text/event-stream",
        retryable=True,
    ),
    "the connection breaks": Told(
        0,
        b"",
        "upstream_disconnected",
        "The provider's answer broke off: try again.",
        ("The connection to {url}/responses broke",),
        retryable=True,
    ),
    "nothing comes": Told(
        0,
        b"",
        "upstream_timeout",
        "The provider stopped answering: try again.",
        ("{url}/responses sent nothing", "UPSTREAM_IDLE_SECONDS"),
        retryable=True,
        after_seconds=2 * IDLE_SECONDS,
    ),
}


@pytest.fixture(scope="module")
def provider() -> Generator[MisbehavingProvider]:
    with misbehaving() as provider:
        yield provider


@pytest.fixture(scope="module")
def server(
    postgres: Postgres, migrated_template: str, provider: MisbehavingProvider, tmp_path_factory: pytest.TempPathFactory
) -> Generator[AppServer]:
    with (
        postgres.database(migrated_template) as database_url,
        running_server(
            database_url,
            provider.url,
            tmp_path_factory.mktemp("told"),
            provider_key=KEY,
            agent_default_model=MODEL,
            upstream_idle_seconds=IDLE_SECONDS,
        ) as server,
    ):
        yield server


@pytest.fixture
def log() -> Generator[JsonLog]:
    with attached() as log:
        yield log


@pytest.mark.parametrize("fault", FAULTS)
def test_users_read_what_they_can_do_and_operators_the_cause(
    server: AppServer, provider: MisbehavingProvider, log: JsonLog, fault: str
) -> None:
    told = FAULTS[fault]
    headers = {"Content-Type": told.content_type, "X-Request-Id": "req_7"}
    provider.answer(told.status, told.body, headers, after_seconds=told.after_seconds)
    line = assert_told(server, log, told, provider.url)
    assert line["model"] == MODEL
    if told.status and told.code != "upstream_unreadable" and told.content_type != "text/html":
        assert "zeppelin" in line["said"]
        assert (line["status"], line["provider_request_id"]) == (told.status, "req_7")


@pytest.mark.parametrize(("host", "reason"), [("127.0.0.1", "Connect call failed"), ("provider.invalid", "not known")])
def test_an_address_that_nobody_reaches_is_told_to_the_operator_alone(
    database_url: str, tmp_path: Path, log: JsonLog, host: str, reason: str
) -> None:
    url = f"http://{host}:{free_port()}/v1"
    told = Told(0, b"", "upstream_unavailable", NOT_NOW, ("/responses cannot be reached",), retryable=True)
    with running_server(database_url, url, tmp_path, agent_default_model=MODEL) as server:
        line = assert_told(server, log, told, url)
    assert f"{host}:" in line["address"]
    assert reason in line["said"]


def assert_told(server: AppServer, log: JsonLog, told: Told, url: str) -> dict[str, Any]:
    """The operator's line of the fault; nothing of it is in what the user reads."""
    user = server.sign_up()
    events = user.ask("Draw a house", agent_key="designer")
    run = user.http.get(f"/v1/runs/{events[0]['run_id']}").json()
    messages = user.messages(run["conversation_id"])
    failure = {"code": told.code, "message": told.user, "retryable": told.retryable}
    assert (events[-1]["error"], run["error"], messages[-1]["error"]) == (failure, failure, failure)
    assert not NOT_FOR_USERS.search(told.user)
    assert "zeppelin" not in json.dumps([events, run, messages])
    end = log.wait_for("run.end", run_id=run["id"])
    warned = [line["event"] for line in log.lines if line["level"] != "info" and line.get("run_id") == run["id"]]
    assert warned == ["provider.error", "run.end"]
    (line,) = log.find("provider.error", run_id=run["id"])
    assert (line["code"], end["code"], end["outcome"]) == (told.code, told.code, "failed")
    assert line["cause"] == end["cause"]
    assert line["level"] == end["level"] == "warning"
    for part in told.operator:
        assert part.format(url=url) in line["cause"]
    assert KEY not in log.text
    return line
