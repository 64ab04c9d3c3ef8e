"""What stands on every answer, and what is closed unless somebody opens it."""

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser
from pydantic import ValidationError

from app.settings import Settings
from tests.app_server import ApiUser, AppServer, one, running_server
from tests.browser import running_chromium

pytestmark = pytest.mark.proof(10, "edges")

GOOD_KEY = "0123456789abcdef" * 4
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


@pytest.fixture
async def chromium() -> AsyncGenerator[Browser]:
    async with running_chromium() as browser:
        yield browser


def test_every_answer_has_the_guards(ada: ApiUser) -> None:
    drawn = one(ada.draw(), "attachment.created")
    answers = [
        ada.http.get("/v1/me"),
        ada.http.get("/livez"),
        ada.http.get("/docs"),
        ada.http.get("/docs/files/swagger-ui.css"),
        ada.http.get("/nowhere"),
        ada.http.post("/v1/me"),
        ada.http.post("/v1/runs", content=b"{"),
        ada.http.post("/v1/runs", content=b"x" * 2_000_000),
        httpx.get(f"{ada.base_url}/v1/me"),
        ada.http.get(drawn["attachment"]["url"]),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 404, 405, 422, 413, 401, 200]
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert len(answer.headers.get_list("Content-Security-Policy")) == 1
    for answer in answers[4:9]:
        assert GUARDS.items() <= dict(answer.headers).items() | {name: answer.headers[name] for name in GUARDS}.items()
    assert "frame-ancestors 'none'" in answers[2].headers["Content-Security-Policy"]


def test_the_policy_of_the_apis_page_names_no_other_origin_and_nothing_unsafe(server: AppServer) -> None:
    page = server.anyone().get("/docs")
    parts = [part.split() for part in page.headers["Content-Security-Policy"].split(";")]
    policy = {name: set(sources) for name, *sources in parts}
    assert policy["default-src"] == {"'self'"}
    assert policy["frame-ancestors"] == {"'none'"}
    for name, sources in policy.items():
        assert sources <= {"'self'", "'none'"} | ({"data:"} if name == "img-src" else set[str]()), name
    files = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(files) == page.text.count("<script") + page.text.count("<link") > 0
    assert {server.anyone().get(file).status_code for file in files if re.match("/[^/]", file)} == {200}
    assert [file for file in files if not re.match("/[^/]", file)] == []


@pytest.mark.slow
async def test_the_page_of_the_api_works_offline_and_keeps_its_policy(server: AppServer, chromium: Browser) -> None:
    page = await chromium.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    await page.goto(f"{server.base_url}/docs")
    await page.get_by_text("Start a run", exact=True).wait_for()
    assert said == []
    assert [url for url in asked if not url.startswith((server.base_url, "data:"))] == []


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({}, True),
        ({"api_docs": "false"}, False),
        ({"environment": "production"}, False),
        ({"environment": "production", "api_docs": "true"}, True),
    ],
)
def test_production_shows_its_documentation_only_where_asked_to(variables: dict[str, Any], shown: bool) -> None:
    assert settings(**variables).api_docs_shown is shown


def test_without_its_documentation_the_page_is_not_there(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path, api_docs=False) as server:
        for path in ("/docs", "/docs/start.js", "/docs/files/swagger-ui.css"):
            assert server.anyone().get(path).status_code == 404


@pytest.mark.parametrize(
    ("variables", "opened"),
    [
        ({}, True),
        ({"signup": "invite"}, False),
        ({"signup": "closed"}, False),
        ({"environment": "production"}, False),
        ({"environment": "production", "signup": "open"}, True),
    ],
)
def test_production_lets_nobody_sign_up_unless_it_is_opened(variables: dict[str, Any], opened: bool) -> None:
    assert settings(**variables).signup_open is opened


def test_where_sign_up_is_closed_it_says_so(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path, signup="closed") as server:
        body = {"email": "ada@example.com", "password": "a long password", "tenant_name": "Acme"}
        answer = server.anyone().post("/v1/signup", json=body)
    assert (answer.status_code, answer.json()["code"]) == (403, "signup_closed")


@pytest.mark.parametrize(
    "secret_key",
    ["short", "x" * 64, f"change-me {GOOD_KEY}", f"example {GOOD_KEY}"],
)
def test_production_refuses_a_secret_that_can_be_guessed(secret_key: str) -> None:
    for given in (secret_key, f"{GOOD_KEY},{secret_key}"):
        with pytest.raises(ValueError, match=r"DATABASE_URL.*SECRET_KEY \(each of its keys 32 random bytes"):
            settings(environment="production", secret_key=given, database_url=None)


def test_a_good_secret_is_taken_and_development_takes_any() -> None:
    settings(environment="production", secret_key=f"{GOOD_KEY},{GOOD_KEY[::-1]}")
    settings(secret_key="short")


def test_production_without_mail_is_warned_of() -> None:
    (warning,) = settings(environment="production").warnings
    assert "SMTP_URL" in warning
    assert settings(environment="production", smtp_url="smtps://mail.example.com").warnings == []
    assert settings(environment="development").warnings == []


@pytest.mark.parametrize("url", ["mail.example.com", "http://mail.example.com", "smtp"])
def test_what_is_no_mail_server_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match=r"smtps?://"):
        settings(smtp_url=url)


def settings(**variables: Any) -> Settings:
    production = {
        "database_url": "postgresql://127.0.0.1/easel",
        "redis_url": "redis://127.0.0.1",
        "secret_key": GOOD_KEY,
        "openai_api_key": "sk-test",
        "public_url": "https://api.example.com",
        "storage_provider": "gcs",
        "gcs_bucket": "easel",
    }
    return Settings(_env_file=None, **(production | variables))  # pyright: ignore[reportCallIssue]
