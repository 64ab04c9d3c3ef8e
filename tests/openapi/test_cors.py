"""Promise 28: pages of other sites read nothing, whatever operation they call, and no cookie is a credential."""

import secrets
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.logins import EMBEDDED_LOGIN
from tests.app_server import ApiUser, AppServer, running_server, shared_parts
from tests.replies import DOCUMENT
from tests.results import Results

LISTED = "https://app.example.com"
FOREIGN = (
    "https://evil.example",
    "https://app.example.com.evil.example",
    "https://evil.example/app.example.com",
    "https://sub.app.example.com",
    "https://app.example.com:8443",
    "http://app.example.com",
    "HTTPS://APP.EXAMPLE.COM",
    "null",
    "*",
    "",
)
LOCAL = (
    "http://localhost",
    "http://localhost:3000",
    "http://localhost:65535",
    "http://127.0.0.1",
    "http://127.0.0.1:5173",
)
NOT_LOCAL = (
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://localhost:8000.evil.example",
    "http://localhost:8000@evil.example",
    "http://evil.example/http://localhost:3000",
    "http://evil-localhost:3000",
    "http://127x0x0x1:3000",
    "http://127.0.0.10:3000",
    "http://localhost:",
    "http://localhost:3000/",
    "http://localhost:123456",
    "https://localhost:3000",
    "https://127.0.0.1",
)
READ_HEADERS = {
    *("ETag", "Idempotent-Replayed", "Location", "RateLimit", "RateLimit-Policy"),
    *("Retry-After", "X-Request-Id", "X-Run-Id"),
}
REFLECTS = ("access-control-allow-origin", "access-control-allow-credentials")
SENT_HEADERS = "authorization, content-type, idempotency-key, last-event-id, x-tenant-id"


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path, cors_origins=[LISTED]) as server:
        yield server


@pytest.fixture
def production(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with running_production(database_url, provider_url, tmp_path) as server:
        yield server


@contextmanager
def running_production(database_url: str, provider_url: str, directory: Path, **settings: Any) -> Generator[AppServer]:
    with shared_parts(directory / "parts") as parts:
        (directory / "parts" / "s3" / "easel").mkdir()  # production makes no bucket
        settings |= {
            **parts,
            "environment": "production",
            "openai_api_key": "sk-test",
            "public_url": "https://api.example.com",
            "secret_key": secrets.token_hex(32),
        }
        with running_server(database_url, provider_url, directory, login=EMBEDDED_LOGIN, **settings) as server:
            yield server


def operations() -> Iterator[tuple[str, str, bool]]:
    """Method, path with an id that never was, and whether it wants a credential; signing out comes last."""
    found: list[tuple[str, str, bool]] = []
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            address = "/".join(str(uuid.UUID(int=7)) if "{" in part else part for part in path.split("/"))
            security = operation.get("security", [{}])
            found.append((method.upper(), address, {} not in security))
    return iter(sorted(found, key=lambda one: one[:2] in (("DELETE", "/v1/tokens"), ("DELETE", "/v1/tokens/current"))))


def reflected(answer: httpx.Response) -> list[str]:
    return [name for name in REFLECTS if name in answer.headers]


def preflight(http: httpx.Client, method: str, path: str, origin: str) -> httpx.Response:
    headers = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": SENT_HEADERS}
    return http.options(path, headers={**headers, "Origin": origin})


def call(http: httpx.Client, method: str, path: str, **headers: str) -> httpx.Response:
    body: dict[str, Any] = {"json": {}} if method in ("POST", "PATCH") else {}
    answer = http.request(method, path, headers=headers, **body)
    assert "set-cookie" not in answer.headers
    return answer


@pytest.mark.slow
@pytest.mark.proof
def test_only_listed_origins_may_read_answers_and_no_cookie_signs_in(
    server: AppServer, ada: ApiUser, results: Results
) -> None:
    nobody = server.anyone()
    token = ada.signed_up["access_token"]
    cookies = "; ".join(f"{name}={token}" for name in ("access_token", "session", "token", "Authorization"))
    count = closed = 0
    for method, path, wants_credential in operations():
        for origin in FOREIGN:
            for answer in (preflight(nobody, method, path, origin), call(nobody, method, path, Origin=origin)):
                assert reflected(answer) == [], (method, path, origin)
                count += 1
        allowed = preflight(nobody, method, path, LISTED)
        assert allowed.status_code == 200, (method, path, allowed.text)
        assert method in allowed.headers["access-control-allow-methods"]
        # Errors as well: a page reads why it was refused.
        for answer in (allowed, call(nobody, method, path, Origin=LISTED), call(ada.http, method, path, Origin=LISTED)):
            assert answer.headers["access-control-allow-origin"] == LISTED, (method, path)
            assert reflected(answer) == ["access-control-allow-origin"]
            assert "Origin" in answer.headers["vary"]
            assert answer is allowed or "X-Run-Id" in answer.headers["access-control-expose-headers"]
            count += 1
        by_cookie = call(nobody, method, path, Cookie=cookies, Origin=LISTED)
        count += 1
        if wants_credential:
            assert by_cookie.status_code == 401, (method, path)
            closed += 1
    assert closed > 15
    tried = f"{count} requests: {len(list(operations()))} operations, {len(FOREIGN)} foreign origins"
    results(28, "origins and cookies", tried=tried, kept="0 foreign origins reflected, 0 cookies accepted or set")


def test_production_without_listed_origins_lets_no_page_read(production: AppServer) -> None:
    nobody = production.anyone()
    for method, path, _ in operations():
        for origin in (LISTED, LOCAL[1]):
            answers = [preflight(nobody, method, path, origin), call(nobody, method, path, Origin=origin)]
            assert [reflected(answer) for answer in answers] == [[], []]
            assert answers[0].status_code == 405


@pytest.mark.parametrize("origin", LOCAL)
def test_development_allows_front_ends_on_localhost(shared_server: AppServer, origin: str) -> None:
    nobody = shared_server.anyone()
    allowed = preflight(nobody, "POST", "/v1/runs", origin)
    answer = call(nobody, "POST", "/v1/runs", Origin=origin)
    assert (allowed.status_code, answer.status_code) == (200, 401)
    assert [one.headers["access-control-allow-origin"] for one in (allowed, answer)] == [origin, origin]
    assert set(SENT_HEADERS.split(", ")) <= set(allowed.headers["access-control-allow-headers"].lower().split(", "))
    assert set(answer.headers["access-control-expose-headers"].split(", ")) == READ_HEADERS


@pytest.mark.parametrize("origin", [*NOT_LOCAL, *FOREIGN])
def test_development_allows_no_origin_that_only_looks_like_localhost(shared_server: AppServer, origin: str) -> None:
    nobody = shared_server.anyone()
    answers = [preflight(nobody, "POST", "/v1/runs", origin), call(nobody, "POST", "/v1/runs", Origin=origin)]
    assert [answer.status_code for answer in answers] == [400, 401]
    assert [reflected(answer) for answer in answers] == [[], []]


@pytest.mark.parametrize("origin", LOCAL)
def test_localhost_is_refused_once_origins_are_listed(server: AppServer, origin: str) -> None:
    nobody = server.anyone()
    assert preflight(nobody, "POST", "/v1/runs", LISTED).status_code == 200
    answers = [preflight(nobody, "POST", "/v1/runs", origin), call(nobody, "POST", "/v1/runs", Origin=origin)]
    assert answers[0].status_code == 400
    assert [reflected(answer) for answer in answers] == [[], []]


def test_development_logs_each_preflight_of_a_refused_origin_with_the_setting(
    own_server: AppServer, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = own_server.anyone()
    for origin in (FOREIGN[0], LOCAL[0], FOREIGN[3], FOREIGN[0]):
        preflight(nobody, "POST", "/v1/runs", origin)
        call(nobody, "POST", "/v1/runs", Origin=origin)
    lines = refusals(caplog)
    assert [line["origin"] for line in lines] == [FOREIGN[0], FOREIGN[3], FOREIGN[0]]
    for line in lines:
        assert line["name"] == "app.cors"
        assert "CORS_ORIGINS= is empty" in line["hint"]


def test_the_logged_hint_shows_the_listed_origins(server: AppServer, caplog: pytest.LogCaptureFixture) -> None:
    preflight(server.anyone(), "POST", "/v1/runs", LOCAL[1])
    (line,) = refusals(caplog)
    assert line["origin"] == LOCAL[1]
    assert f"CORS_ORIGINS={LISTED} " in line["hint"]


def test_the_log_shows_no_more_of_an_origin_than_a_line_of_it(
    own_server: AppServer, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = own_server.anyone()
    preflight(nobody, "POST", "/v1/runs", "https://" + "x" * 5000)
    nobody.options(
        "/v1/runs", headers=[(b"Origin", b"https://\x9b2J\x85" * 50), (b"Access-Control-Request-Method", b"GET")]
    )
    logged = [line["origin"] for line in refusals(caplog)]
    assert [len(origin) for origin in logged] == [200, 200]
    assert logged[1].startswith(r"https://\x9b2J\x85")
    assert all(len(origin) <= 200 and origin.isascii() and origin.isprintable() for origin in logged)


def test_production_with_listed_origins_refuses_localhost_and_logs_none(
    database_url: str, provider_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_production(database_url, provider_url, tmp_path, cors_origins=[LISTED]) as server:
        answers = [preflight(server.anyone(), "POST", "/v1/runs", origin) for origin in (LISTED, LOCAL[1], FOREIGN[0])]
    assert [answer.status_code for answer in answers] == [200, 400, 400]
    assert refusals(caplog) == []


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == "cors.refused"]
