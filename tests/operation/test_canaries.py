"""Promise 30: secrets go through every path, and stand afterwards in no log, event, answer, row, trace or report."""

import re
import secrets
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import redis

from app.logins import EMBEDDED_LOGIN, as_login
from tests.app_server import starting_easel
from tests.collectors import running_collector
from tests.json_log import lines_of
from tests.made_streams import png
from tests.redis_contents import everything_in
from tests.results import Results
from tests.scrapes import scrape
from tests.servers import free_port, redis_server, s3_server
from tests.tables import every_value, rows

# What an answer would say of how the service is built.
INTERNALS = re.compile(r"Traceback|File \"|\bSELECT\b|\bINSERT\b|sqlalchemy|asyncpg|pydantic|\.py\b|site-packages")
HAND_OUT = ("/v1/signup", "/v1/tokens", "/v1/tokens/refresh", "/v1/api-keys")
FAULTS = ("http=401", "http=500", "failed", "reset", "cut", "error_event", "call=read_file", "not_an_image")
# What the queries of all that can be called name.
# How a picture begins, as it is and in base64.
PICTURES = (b"\x89PNG", b"iVBORw0KGgo", b"RIFF", b"UklGR")
COLUMNS = (("tokens.secret_hash",), ("users.email", "api_keys.secret_hash", "runs.options", "attachments.filename"))


@dataclass
class Canaries:
    """Name -> a value that must be found nowhere."""

    values: dict[str, str] = field(default_factory=dict[str, str])
    prompt: str = field(default_factory=lambda: f"Prompt{secrets.token_hex(20)}")
    """Stands in everything that is the user's, and must be found in no trace and no report."""

    def new(self, name: str, prefix: str = "") -> str:
        self.values[name] = f"{prefix}Canary{secrets.token_hex(20)}"
        return self.values[name]

    def found_in(self, data: bytes) -> list[str]:
        return [name for name, value in self.values.items() if value.encode() in data]


@dataclass
class User:
    """Calls everything with secrets, and keeps the answers."""

    http: httpx.Client
    canaries: Canaries
    email: str = field(default_factory=lambda: f"{secrets.token_hex(6)}@example.com")
    answers: list[httpx.Response] = field(default_factory=list[httpx.Response])

    def send(self, method: str, path: str, bearer: str = "access token", **request: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.canaries.values.get(bearer, 'none')}", **request.pop("headers", {})}
        answer = self.http.request(method, path, headers=headers, **request)
        self.answers.append(answer)
        return answer

    def sign_up(self) -> None:
        body = {"email": self.email, "password": self.canaries.values["password"], "tenant_name": "Acme"}
        signed_up = self.send("POST", "/v1/signup", json=body).json()
        self.canaries.values["access token"] = signed_up["access_token"]
        self.canaries.values["first refresh token"] = signed_up["refresh_token"]
        refreshed = self.send("POST", "/v1/tokens/refresh", json={"refresh_token": signed_up["refresh_token"]}).json()
        self.canaries.values["access token"] = refreshed["access_token"]
        self.canaries.values["refresh token"] = refreshed["refresh_token"]
        self.canaries.values["API key"] = self.send("POST", "/v1/api-keys", json={"name": "A key"}).json()["key"]

    def use_everything(self) -> None:
        values = self.canaries.values
        for secret in ("password", "wrong password"):
            self.send("POST", "/v1/tokens", json={"email": self.email, "password": values[secret]})
        self.send("POST", "/v1/signup", json={"email": "no address", "password": values["refused password"]})
        self.send("POST", "/v1/signup", json={"email": self.email, "password": values["refused password"]})
        self.send("POST", "/v1/tokens/refresh", json={"refresh_token": values["made-up credential"], "more": 1})
        self.send("POST", "/v1/api-keys", json={"name": "A key", "key": values["API key"]})
        for bearer in ("access token", "API key", "refresh token", "made-up credential"):
            for path in ("/v1/me", "/v1/api-keys", "/v1/conversations", "/v1/attachments", "/v1/agents"):
                self.send("GET", path, bearer)
        for secret in ("access token", "refresh token", "API key", "key of the provider"):
            for id_ in (values[secret], f"id-{values[secret]}", f'", "level": "{values[secret]}'):
                self.send(
                    "GET", "/v1/nowhere", headers={"X-Request-Id": id_, "traceparent": id_, "X-Forwarded-For": id_}
                )
        self.send("POST", "/v1/attachments", files={"file": (f"{self.canaries.prompt}.png", png("red"))})
        self.ask("Draw a house")
        self.send("GET", "/readyz")

    def ask(self, text: str, **headers: str) -> None:
        body = {"input": f"{text} {self.canaries.prompt}", "agent_key": "designer", "image": {"quality": "low"}}
        self.send("POST", "/v1/runs", json=body, headers=headers)


@pytest.mark.slow
@pytest.mark.proof
def test_no_secret_is_found_where_it_does_not_belong(
    database_url: str, provider_url: str, tmp_path: Path, results: Results
) -> None:
    canaries = Canaries()
    for name in ("password", "wrong password", "refused password", "made-up credential"):
        canaries.new(name)
    with ExitStack() as stack:
        broker = stack.enter_context(redis_server(tmp_path / "redis"))
        s3 = stack.enter_context(s3_server(tmp_path / "s3"))
        collector = stack.enter_context(running_collector())
        canaries.values["key of the store"] = s3.secret_key
        redis_url = with_password(broker.url, canaries.new("password of Redis"))
        settings: dict[str, Any] = {
            "redis_url": redis_url,
            "secret_key": f"{canaries.new('signing key')},{canaries.new('old signing key')}",
            "openai_api_key": canaries.new("key of the provider", "sk-"),
            "storage_provider": "minio",
            "minio_endpoint": s3.endpoint,
            "minio_access_key": s3.access_key,
            "minio_secret_key": s3.secret_key,
            "minio_secure": "false",
            "log_level": "debug",
            "metrics_port": free_port(),
            "sentry_dsn": collector.dsn,
            **collector.variables(),
            "otel_exporter_otlp_headers": f"authorization={canaries.new('key of the collector')}",
        }
        login = as_login(database_url, EMBEDDED_LOGIN).replace("@", f":{canaries.new('password of Postgres')}@", 1)
        easel = stack.enter_context(starting_easel("serve", login, provider_url, tmp_path / "easel", settings))
        easel.wait_until_ready()
        user = User(stack.enter_context(httpx.Client(base_url=easel.base_url, timeout=30)), canaries)
        user.sign_up()
        user.use_everything()
        for fault in FAULTS:
            user.ask(f"Draw a house [offline: {fault}]", Accept="text/event-stream")
        for columns in COLUMNS:
            with without(database_url, *columns):
                user.use_everything()
        values = [value for _, value in everything_in(redis_url)]
        values.append(scrape(settings["metrics_port"]).text.encode())
        s3.process.kill()
        user.use_everything()
        broker.process.kill()
        user.use_everything()
        log = easel.log.read_bytes()
        easel.terminate()
        sent = b"\n".join(collector.bodies)
    values += [value for column in every_value(database_url).values() for value in column]
    assert canaries.found_in(b"\n".join(values)) == []
    assert {"run", "queue", "ingest image", "store image"} <= {span.name for span in collector.spans}
    assert "request.failed" in {error["logentry"]["message"] for error in collector.errors}
    assert canaries.prompt.encode() in b"\n".join(values)
    assert canaries.found_in(sent) == []
    assert [word for word in (canaries.prompt.encode(), *PICTURES) if word in sent] == []
    assert b"UndefinedColumn" in log
    assert canaries.found_in(log) == []
    assert len(lines_of(log.decode())) == log.count(b"\n")
    told = [answer for answer in user.answers if answer.status_code != 201 or answer.request.url.path not in HAND_OUT]
    assert [found for answer in told if (found := canaries.found_in(bytes_of(answer)))] == []
    statuses = [answer.status_code for answer in told]
    assert {200, 401, 422, 500, 503} <= set(statuses)
    assert [answer.text for answer in told if answer.is_error and INTERNALS.search(answer.text)] == []
    tried = f"{len(canaries.values)} secrets, {len(told)} answers, {sum(status >= 500 for status in statuses)} x 5xx"
    lines = log.count(b"\n")
    reports = f"{len(collector.spans)} spans, {len(collector.errors)} reports"
    results(
        30,
        "canaries",
        tried=tried,
        kept=f"0 in answers, events, {lines} log lines, {len(values)} values at rest, {reports}",
    )


def with_password(url: str, password: str) -> str:
    """The server's URL with the password that it wants from now on."""
    with cast(Any, redis.Redis).from_url(url) as client:
        client.config_set("requirepass", password)
    return url.replace("redis://", f"redis://:{password}@")


@contextmanager
def without(database_url: str, *columns: str) -> Generator[None]:
    """Meanwhile every statement that names one of the columns fails."""
    named = [column.split(".") for column in columns]
    for table, name in named:
        rows(database_url, f"ALTER TABLE {table} RENAME COLUMN {name} TO gone")
    yield
    for table, name in named:
        rows(database_url, f"ALTER TABLE {table} RENAME COLUMN gone TO {name}")


def bytes_of(answer: httpx.Response) -> bytes:
    return b"\n".join(value for pair in answer.headers.raw for value in pair) + answer.content
