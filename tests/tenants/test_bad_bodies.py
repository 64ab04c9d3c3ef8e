"""What people and programs send by mistake, or on purpose, to accounts and tenants: a documented refusal each."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.app_server import PASSWORD, ApiUser, AppServer
from tests.mails import token_in, wait_for_mail

LONG = "x" * 1_000_000


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


# Where a secret is taken, which kind belongs there, and what any other kind is answered.
Place = Callable[[httpx.Client, str], httpx.Response]
PLACES: dict[str, tuple[Place, set[str], int]] = {
    "Authorization": (
        lambda http, secret: http.get("/v1/me", headers={"Authorization": f"Bearer {secret}"}),
        {"access", "key"},
        401,
    ),
    "refresh_token": (
        lambda http, secret: http.post("/v1/tokens/refresh", json={"refresh_token": secret}),
        {"refresh"},
        401,
    ),
    "invitation": (
        lambda http, secret: http.post("/v1/invitations/acceptance", json={"token": secret, "password": PASSWORD}),
        {"invitation"},
        404,
    ),
    "password reset": (
        lambda http, secret: http.put("/v1/password-resets", json={"token": secret, "new_password": PASSWORD}),
        {"reset"},
        404,
    ),
    "link": (lambda http, secret: http.get(f"/v1/files/{secret}"), set(), 404),
}


def test_a_secret_opens_only_what_its_kind_is_for(server: AppServer, ada: ApiUser) -> None:
    assert server.anyone().post("/v1/password-resets", json={"email": ada.email}).status_code == 202
    secrets = {
        "access": ada.signed_up["access_token"],
        "refresh": ada.signed_up["refresh_token"],
        "key": ada.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"],
        "invitation": ada.invite("grace@example.com")["token"],
        "reset": token_in(wait_for_mail(server, ada.email)),
    }
    for place, (send, own, refused) in PLACES.items():
        for kind, secret in secrets.items():
            if kind not in own:
                answer = send(server.anyone(), secret)
                assert answer.status_code == refused, (place, kind, answer.text)
                assert secret not in answer.text
    for kind in ("access", "key"):
        assert PLACES["Authorization"][0](server.anyone(), secrets[kind]).status_code == 200


BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/tenants", {"name": LONG}),
    ("POST", "/v1/tenants", {"name": "a\0b"}),
    ("PATCH", "/v1/tenants/current", {"name": LONG}),
    ("PATCH", "/v1/tenants/current", {"retention_days": 2**70}),
    ("PATCH", "/v1/me", {"name": LONG}),
    ("PATCH", "/v1/me", {"name": "a\0b"}),
    ("POST", "/v1/invitations", {"email": f"{'x' * 100_000}@example.com", "role": "member"}),
    ("POST", "/v1/invitations", {"email": "grace@example.com", "role": "OWNER"}),
    ("POST", "/v1/invitations", {"email": "grace@example.com", "role": None}),
    ("POST", "/v1/api-keys", {"name": LONG}),
    ("POST", "/v1/api-keys", {"name": "A key", "scopes": ["chat:read"] * 1000}),
    ("POST", "/v1/api-keys", {"name": "A key", "scopes": ["a\0b"]}),
    ("POST", "/v1/api-keys", {"name": "A key", "expires_at": "0001-01-01T00:00:00Z"}),
    ("POST", "/v1/api-keys", {"name": "A key", "expires_at": "9999-12-31T23:59:59-14:00"}),
    ("PUT", "/v1/me/password", {"current_password": LONG, "new_password": PASSWORD}),
    ("PUT", "/v1/me/password", dict.fromkeys(("current_password", "new_password"), "\0" * 12)),
    ("POST", "/v1/invitations/acceptance", {"token": "a\0b", "password": PASSWORD}),
    ("POST", "/v1/invitations/acceptance", {"token": "x" * 201, "password": PASSWORD}),
    ("PUT", "/v1/password-resets", {"token": "a\0b", "new_password": PASSWORD}),
    ("POST", "/v1/password-resets", {"email": "a\0b@example.com"}),
]


@pytest.mark.parametrize(("method", "path", "body"), BODIES)
def test_a_body_that_cannot_be_meant_is_refused_and_changes_nothing(
    ada: ApiUser, method: str, path: str, body: dict[str, Any]
) -> None:
    before = ada.http.get("/v1/me").json()
    answer = ada.http.request(method, path, json=body)
    assert answer.status_code in (403, 404, 413, 422), answer.text[:300]
    assert len(answer.content) < 4096
    assert ada.http.get("/v1/me").json() == before


@pytest.mark.parametrize("query", ["actor_id=x", "target_id=%00", "action=%00", "limit=0", "cursor=x", "action=king"])
def test_an_audit_query_that_cannot_be_meant_is_refused(ada: ApiUser, query: str) -> None:
    assert ada.http.get(f"/v1/audit?{query}").status_code == 422


def test_a_key_of_one_tenant_opens_no_other_by_its_name(ada: ApiUser, stranger: ApiUser, server: AppServer) -> None:
    key = ada.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"]
    headers = {"Authorization": f"Bearer {key}", "X-Tenant-Id": stranger.signed_up["tenant"]["id"]}
    for path in ("/v1/me", "/v1/members", "/v1/audit", "/v1/tenants/current"):
        assert server.anyone().get(path, headers=headers).status_code == 404, path
