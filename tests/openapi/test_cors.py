"""Promise 28: pages of other sites read nothing, whatever operation they call, and no cookie is a credential."""

import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app_server import ApiUser, AppServer, running_server
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
REFLECTS = ("access-control-allow-origin", "access-control-allow-credentials")
SENT_HEADERS = "authorization, content-type, idempotency-key, last-event-id, x-tenant-id"


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path, cors_origins=[LISTED]) as server:
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


def test_where_no_origin_is_listed_none_may_read(shared_server: AppServer) -> None:
    nobody = shared_server.anyone()
    for method, path, _ in operations():
        answers = [preflight(nobody, method, path, LISTED), call(nobody, method, path, Origin=LISTED)]
        assert [reflected(answer) for answer in answers] == [[], []]
        assert answers[0].status_code == 405
