"""Traces by OpenTelemetry and errors to Sentry: one trace from a request to the stored image, over two processes."""

import re
import secrets
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app import traces
from app.open_telemetry import tracing
from app.settings import SettingsError, load_settings
from tests import timeouts
from tests.app_server import ApiUser, AppServer, EaselProcess, kinds, one, shared_parts, starting_easel
from tests.collectors import Collector, SentSpan, running_collector
from tests.json_log import find, lines_of
from tests.tables import rows

ROOT = Path(__file__).resolve().parents[2]
PARENT_ID = "b7ad6b7169203331"
# Docket loads OpenTelemetry's interface, and redis its counters, which nobody reads.
WITHOUT = """
import sys
from app.commands import serve, worker
from app.embedded import Parts
from app.main import create_app
from app.observing import observed
from app.settings import Settings

settings = Settings(_env_file=None)
with observed(settings):
    create_app(settings, Parts("postgresql://127.0.0.1:1/none", None, "key"))
    loaded = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "sentry_sdk")
    print([name for name in sys.modules if name.startswith(loaded)])
"""


@dataclass
class Observed:
    """An API, a worker, and where both report to."""

    collector: Collector
    database_url: str
    api: EaselProcess
    worker: EaselProcess

    @property
    def logs(self) -> list[dict[str, Any]]:
        return [line for process in (self.api, self.worker) for line in lines_of(process.log.read_text())]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Generator[Observed]:
    directory = tmp_path_factory.mktemp("observed")
    postgres, template = request.getfixturevalue("postgres"), request.getfixturevalue("migrated_template")
    with ExitStack() as stack:
        collector = stack.enter_context(running_collector())
        settings = stack.enter_context(shared_parts(directory)) | collector.variables()
        settings |= {"sentry_dsn": collector.dsn, "embedded_worker": False}
        settings |= {"otel_resource_attributes": "deployment.environment.name=test"}
        database_url = stack.enter_context(postgres.database(template))
        processes = [
            stack.enter_context(
                starting_easel(
                    command, database_url, request.getfixturevalue("provider_url"), directory / command, settings
                )
            )
            for command in ("serve", "worker")
        ]
        for process in processes:
            process.wait_until_ready()
        yield Observed(collector, database_url, *processes)


def test_a_request_its_run_and_its_image_are_one_trace(observed: Observed) -> None:
    ada, trace_id = ApiUser(observed.api.base_url), secrets.token_hex(16)
    ada.http.headers["traceparent"] = f"00-{trace_id}-{PARENT_ID}-01"
    events = ada.draw("Draw a red house")
    run, image = events[-1]["run"], one(events, "attachment.created")["attachment"]
    observed.collector.wait_for("run", easel__run_id=run["id"])
    observed.collector.wait_for("POST /v1/runs", easel__run_id=run["id"])
    spans = {span.name: span for span in observed.collector.of_trace(trace_id)}
    assert {name: (span.kind, parent_of(span, spans)) for name, span in spans.items()} == {
        "POST /v1/runs": ("server", "the caller"),
        "queue": ("internal", "POST /v1/runs"),
        "run": ("consumer", "POST /v1/runs"),
        "chat gpt-6.1-sol": ("client", "run"),
        "ingest image": ("internal", "run"),
        "store image": ("client", "ingest image"),
    }
    documented = set(re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "traces.md").read_text(), re.MULTILINE))
    assert {name.replace("gpt-6.1-sol", "MODEL") for name in spans} == documented
    assert not any(span.failed for span in spans.values())
    request, queue, executed, ingest, store = (
        spans[name] for name in ("POST /v1/runs", "queue", "run", "ingest image", "store image")
    )
    assert request.facts["http.response.status_code"] == 200
    assert request.facts["url.path"] == request.facts["http.route"] == "/v1/runs"
    assert executed.facts["easel.outcome"] == "completed"
    assert executed.facts["easel.tenant_id"] == ada.signed_up["tenant"]["id"]
    assert (executed.facts["easel.agent"], executed.facts["easel.attempt"]) == ("designer", 1)
    assert executed.facts["easel.request_id"] == request.facts["easel.request_id"] == trace_id
    assert store.facts["easel.object_id"] == image["object_id"]
    assert store.facts["easel.bytes"] == ingest.facts["easel.bytes"] == image["size_bytes"]
    assert request.began <= executed.began <= spans["chat gpt-6.1-sol"].began <= ingest.began <= store.began
    assert queue.ended - queue.began < 5e9 * timeouts.SCALE
    for span in spans.values():
        assert span.began <= span.ended


def parent_of(span: SentSpan, spans: dict[str, SentSpan]) -> str:
    names = {one.id: name for name, one in spans.items()} | {PARENT_ID: "the caller", "": "nobody"}
    return names[span.parent_id]


def test_without_a_caller_s_trace_one_begins_and_the_log_names_it(observed: Observed) -> None:
    ada = ApiUser(observed.api.base_url)
    run = ada.ask("Hello")[-1]["run"]
    executed = observed.collector.wait_for("run", easel__run_id=run["id"])["run"]
    request = observed.collector.wait_for("POST /v1/runs", easel__run_id=run["id"])["POST /v1/runs"]
    assert (request.parent_id, executed.parent_id) == ("", request.id)
    for event in ("request", "run.start", "run.end"):
        (line,) = find(observed.logs, event, run_id=run["id"])
        assert line["trace_id"] == request.trace_id == executed.trace_id


@pytest.mark.slow
def test_a_trace_that_its_caller_does_not_sample_is_not_sent(observed: Observed) -> None:
    ada, trace_id = ApiUser(observed.api.base_url), secrets.token_hex(16)
    ada.http.headers["traceparent"] = f"00-{trace_id}-{PARENT_ID}-00"
    assert kinds(ada.draw())[-1] == "run.completed"
    del ada.http.headers["traceparent"]
    later = ada.ask("Hello")[-1]["run"]
    observed.collector.wait_for("run", "POST /v1/runs", easel__run_id=later["id"])
    assert observed.collector.of_trace(trace_id) == []


def test_a_span_says_by_its_error_what_failed(observed: Observed) -> None:
    ada = ApiUser(observed.api.base_url)
    run = ada.draw("Draw a house [offline: http=401]")[-1]["run"]
    executed = observed.collector.wait_for("run", easel__run_id=run["id"])["run"]
    spans = {span.name: span for span in observed.collector.of_trace(executed.trace_id)}
    call = spans["chat gpt-6.1-sol"]
    assert (executed.failed, executed.facts["error.type"]) == (True, "upstream_unauthorized")
    assert (call.failed, call.facts["error.type"]) == (True, "upstream_unauthorized")
    assert not observed.collector.wait_for("POST /v1/runs", easel__run_id=run["id"])["POST /v1/runs"].failed
    # Its words may hold what the file's bytes say: the collector accepts no more of an exception than its type.
    unreadable = ada.draw("Draw a house [offline: not_an_image]")[-1]["run"]
    found = observed.collector.wait_for("run", "ingest image", easel__run_id=unreadable["id"])
    assert (found["ingest image"].failed, found["ingest image"].facts["error.type"]) == (True, "UnreadableImage")
    refused = ada.http.get("/v1/runs/0")
    found = observed.collector.wait_for("GET /v1/runs/{run_id}", easel__request_id=refused.headers["X-Request-Id"])
    assert not found["GET /v1/runs/{run_id}"].failed


def test_probes_have_no_spans_and_links_show_no_permission(observed: Observed) -> None:
    ada = ApiUser(observed.api.base_url)
    http = ada.http
    assert http.get("/readyz").status_code == http.get("/livez").status_code == 200
    assert http.get("/v1/files/not-a-permission").status_code in (404, 403)
    last = http.get("/v1/me?not=shown")
    span = observed.collector.wait_for("GET /v1/me", easel__request_id=last.headers["X-Request-Id"])["GET /v1/me"]
    assert span.facts["url.path"] == "/v1/me"
    named = {str(one.facts.get("url.path")) for one in observed.collector.spans}
    assert "/v1/files/" in named
    assert not {"/readyz", "/livez", "/v1/files/not-a-permission"} & named
    resource = {"service.name": "easel", "deployment.environment.name": "test", "telemetry.sdk.name": "opentelemetry"}
    assert all(resource.items() <= found.items() for found in observed.collector.resources)


def test_an_unforeseen_fault_goes_to_sentry_without_its_words(observed: Observed) -> None:
    ada = ApiUser(observed.api.base_url)
    secret_title = f"A title {secrets.token_hex(8)}"
    conversation = ada.ask("Hello")[-1]["run"]["conversation_id"]
    rows(observed.database_url, "ALTER TABLE conversations RENAME COLUMN title TO gone")
    try:
        answer = ada.http.patch(f"/v1/conversations/{conversation}", json={"title": secret_title})
    finally:
        rows(observed.database_url, "ALTER TABLE conversations RENAME COLUMN gone TO title")
    assert answer.status_code == 500
    request_id = answer.json()["request_id"]
    error = observed.collector.wait_for_error("request.failed", request_id=request_id)
    assert error["tags"]["tenant_id"] == ada.signed_up["tenant"]["id"]
    assert (error["level"], error["environment"]) == ("error", "development")
    assert error["release"].startswith("easel@")
    types = [value["type"] for value in error["exception"]["values"]]
    assert "UndefinedColumnError" in types
    frames = [frame for value in error["exception"]["values"] for frame in value["stacktrace"]["frames"]]
    assert "app/conversations/service.py" in {frame["filename"] for frame in frames}
    assert not any({"vars", "value"} & part.keys() for part in [*error["exception"]["values"], *frames])
    assert secret_title.encode() not in b"".join(observed.collector.bodies)
    span = observed.collector.wait_for("PATCH /v1/conversations/{conversation_id}", easel__request_id=request_id)
    assert span["PATCH /v1/conversations/{conversation_id}"].facts["error.type"] == "500"


@pytest.mark.slow
def test_a_collector_that_does_not_answer_holds_up_nothing(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with running_collector(answer=lambda: time.sleep(60)) as collector:
        settings = collector.variables() | {"sentry_dsn": collector.dsn}
        with starting_easel("serve", database_url, provider_url, tmp_path / "easel", settings) as easel:
            easel.wait_until_ready()
            ada = ApiUser(easel.base_url)
            assert kinds(ada.draw())[-1] == "run.completed"
            began = time.monotonic()
            assert ada.http.get("/v1/me").status_code == 200
            assert time.monotonic() - began < timeouts.ALIVE
            assert collector.bodies
            status, seconds = easel.terminate()
    assert status == 0
    assert seconds < timeouts.DRAINED + 2 * timeouts.SCALE


def test_what_stands_in_the_file_of_settings_reaches_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_collector() as collector:
        given = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "mine"}
        for name in given:
            # So that they are gone after the test.
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        with tracing(given), traces.span("a span", {"easel.run_id": "none"}):
            pass
    assert [span.name for span in collector.spans] == ["a span"]
    assert collector.resources[0]["service.name"] == "mine"


class CountingTracer:
    """Counts what a run asks of a tracer."""

    def __init__(self) -> None:
        self.calls = 0

    def span(self, *_: object) -> Any:
        self.calls += 1
        return nullcontext()

    def record(self, *_: object) -> None:
        self.calls += 1

    def annotate(self, *_: object) -> None:
        self.calls += 1

    def traceparent(self) -> None:
        self.calls += 1


def test_a_text_s_deltas_cost_no_span(own_server: AppServer) -> None:
    ada = own_server.sign_up()
    counted: list[tuple[int, int]] = []
    for words in (5, 200):
        tracer = CountingTracer()
        traces.use(tracer)
        try:
            events = ada.ask(f"Hello [offline: words={words}]")
        finally:
            traces.use(None)
        counted.append((kinds(events).count("text.delta"), tracer.calls))
    (few, calls), (many, calls_of_many) = counted
    assert many > 5 * few
    # A call may come late, as a run ends after its reader was told.
    assert 0 < calls_of_many < calls + 10 < many


@pytest.mark.slow
def test_nothing_of_it_is_loaded_unless_asked_for() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=60, env={}
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER is 'console', but traces are sent by otlp alone"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc', but traces are sent by http/protobuf alone",
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: give http"),
        ({"SENTRY_DSN": "https://sentry.example.com"}, "SENTRY_DSN: give https://KEY@HOST/PROJECT"),
        ({"SENTRY_DSN": "https://key@sentry.example.com:https/1"}, "SENTRY_DSN: give https://KEY@HOST/PROJECT"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_sentence(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "easel"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
@pytest.mark.parametrize("place", ["the environment", ".env"])
def test_the_variables_of_opentelemetry_turn_traces_on_and_off(
    variables: dict[str, str], wanted: bool, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if place == ".env":
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    else:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.traces_wanted == wanted
    assert variables.items() <= settings.telemetry.items()
