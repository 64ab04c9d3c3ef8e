"""Signing up, in and out; refresh tokens and their theft; API keys and what they may do."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import pytest

from tests.app_server import PASSWORD, ApiUser, AppServer
from tests.mails import token_in, wait_for_mail
from tests.tables import every_value, rows

pytestmark = pytest.mark.proof(12, "credentials")

USES = 20


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def test_an_address_signs_up_once_whatever_its_case(server: AppServer, ada: ApiUser) -> None:
    for email in (ada.email, ada.email.upper()):
        body = {"email": email, "password": "another password", "tenant_name": "Again"}
        answer = server.anyone().post("/v1/signup", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "email_taken")
        assert "sign in" in answer.json()["detail"]


def test_a_refused_sign_up_leaves_no_tenant_behind(server: AppServer, ada: ApiUser, database_url: str) -> None:
    body = {"email": ada.email, "password": "another password", "tenant_name": "Again"}
    assert server.anyone().post("/v1/signup", json=body).status_code == 409
    assert rows(database_url, "SELECT name FROM tenants") == [("Ada's",)]


def test_a_wrong_password_and_an_unknown_person_are_answered_alike(server: AppServer, ada: ApiUser) -> None:
    wrong, unknown = (
        server.anyone().post("/v1/tokens", json={"email": email, "password": "not the password"})
        for email in (ada.email, "nobody@example.com")
    )
    assert wrong.status_code == unknown.status_code == 401
    assert without_request_id(wrong) == without_request_id(unknown)


def test_each_sign_in_stands_alone_and_signing_out_ends_only_one(server: AppServer, ada: ApiUser) -> None:
    phone = sign_in(server, ada)
    assert status(server, phone["access_token"]) == 200
    assert ada.http.delete("/v1/tokens/current").status_code == 204
    assert status(server, ada.signed_up["access_token"]) == 401
    assert refresh(server.anyone(), ada.signed_up["refresh_token"]).status_code == 401
    assert status(server, phone["access_token"]) == 200
    assert refresh(server.anyone(), phone["refresh_token"]).status_code == 201


def test_many_uses_of_one_refresh_token_at_once_have_one_successor(
    server: AppServer, ada: ApiUser, database_url: str
) -> None:
    client = server.anyone()
    with ThreadPoolExecutor(USES) as pool:
        answers = list(pool.map(refresh, [client] * USES, [str(ada.signed_up["refresh_token"])] * USES))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1
    assert len({answer.json()["access_token"] for answer in answers}) == 1
    successor = answers[0].json()
    assert status(server, successor["access_token"]) == 200
    assert rows(database_url, "SELECT kind, count(*) FROM tokens GROUP BY kind ORDER BY kind") == [
        ("access", 2),
        ("refresh", 2),
    ]
    assert refresh(client, successor["refresh_token"]).status_code == 201


def test_a_refresh_token_used_again_later_ends_the_whole_family(
    server: AppServer, ada: ApiUser, database_url: str
) -> None:
    client = server.anyone()
    other = sign_in(server, ada)
    successor = refresh(client, ada.signed_up["refresh_token"]).json()
    rows(database_url, "UPDATE tokens SET used_at = used_at - interval '11 seconds' WHERE used_at IS NOT NULL")
    replayed = refresh(client, ada.signed_up["refresh_token"])
    assert replayed.status_code == 401
    assert "sign in" in replayed.json()["detail"]
    for token in (ada.signed_up["access_token"], successor["access_token"]):
        assert status(server, token) == 401
    assert refresh(client, successor["refresh_token"]).status_code == 401
    assert status(server, other["access_token"]) == 200


@pytest.mark.parametrize("kind", ["access_token", "unknown", "empty"])
def test_what_is_no_refresh_token_is_refused(server: AppServer, ada: ApiUser, kind: str) -> None:
    token = {"access_token": ada.signed_up["access_token"], "unknown": "easel_rt_never", "empty": ""}[kind]
    assert refresh(server.anyone(), token).status_code == 401


def test_a_key_is_shown_once_and_acts_as_its_maker(server: AppServer, ada: ApiUser) -> None:
    made = make_key(ada)
    (listed,) = ada.http.get("/v1/api-keys").json()["data"]
    assert listed["id"] == made["id"]
    assert "key" not in listed
    answer = server.anyone().get("/v1/me", headers=bearer(made["key"]))
    assert answer.json()["user"] == ada.signed_up["user"]
    assert answer.json()["tenant"] == ada.signed_up["tenant"]
    assert made["key"] not in ada.http.get("/v1/api-keys").text


def test_a_key_was_used_though_its_request_failed(server: AppServer, ada: ApiUser) -> None:
    made = make_key(ada)
    assert made["last_used_at"] is None
    assert server.anyone().get(f"/v1/runs/{made['id']}", headers=bearer(made["key"])).status_code == 404
    (listed,) = ada.http.get("/v1/api-keys").json()["data"]
    assert listed["last_used_at"]


def test_no_secret_lies_in_the_database(server: AppServer, ada: ApiUser, database_url: str) -> None:
    renewed = refresh(server.anyone(), ada.signed_up["refresh_token"]).json()
    pairs = [ada.signed_up, renewed]
    secrets = [pair[name] for pair in pairs for name in ("access_token", "refresh_token")] + [make_key(ada)["key"]]
    invitation = ada.invite("grace@example.com")["token"]
    assert server.anyone().post("/v1/password-resets", json={"email": ada.email}).status_code == 202
    mailed = [invitation, token_in(wait_for_mail(server, ada.email))]
    assert ada.ask("Hello")
    values = every_value(database_url)
    for secret in [*secrets, *mailed, PASSWORD]:
        bare = secret.split("_", 2)[-1].encode()
        assert [name for name, column in values.items() if any(bare in value for value in column)] == []
    # The same look finds what is there: the hashes.
    hashes = {value for name, column in values.items() if name.endswith(".secret_hash") for value in column}
    assert hashes == {hashlib.sha256(secret.encode()).digest() for secret in [*secrets, *mailed]}
    assert values["users.password_hash"][0].startswith(b"$argon2id$")


def test_an_unknown_scope_is_refused_with_the_known_ones(ada: ApiUser) -> None:
    answer = ada.http.post("/v1/api-keys", json={"name": "Key", "scopes": ["chat:everything"]})
    assert answer.status_code == 422
    assert "chat:write" in answer.text


def test_an_expired_key_is_refused(server: AppServer, ada: ApiUser, database_url: str) -> None:
    key = make_key(ada, expires_at="2099-01-01T00:00:00Z")["key"]
    assert status(server, key) == 200
    rows(database_url, "UPDATE api_keys SET expires_at = now() - interval '1 second'")
    assert status(server, key) == 401


def test_a_disabled_person_is_refused_everywhere(server: AppServer, ada: ApiUser, database_url: str) -> None:
    key = make_key(ada)["key"]
    rows(database_url, "UPDATE users SET disabled_at = now()")
    assert status(server, ada.signed_up["access_token"]) == 401
    assert status(server, key) == 401
    assert refresh(server.anyone(), ada.signed_up["refresh_token"]).status_code == 401
    body = {"email": ada.email, "password": PASSWORD}
    assert server.anyone().post("/v1/tokens", json=body).status_code == 401


def sign_in(server: AppServer, user: ApiUser) -> dict[str, Any]:
    answer = server.anyone().post("/v1/tokens", json={"email": user.email, "password": PASSWORD})
    assert answer.status_code == 201, answer.text
    return cast(dict[str, Any], answer.json())


def refresh(client: httpx.Client, token: str) -> httpx.Response:
    return client.post("/v1/tokens/refresh", json={"refresh_token": token})


def make_key(user: ApiUser, **fields: Any) -> dict[str, Any]:
    answer = user.http.post("/v1/api-keys", json={"name": "A key", **fields})
    assert answer.status_code == 201, answer.text
    return cast(dict[str, Any], answer.json())


def status(server: AppServer, credential: str) -> int:
    return server.anyone().get("/v1/me", headers=bearer(credential)).status_code


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def without_request_id(answer: httpx.Response) -> str:
    return re.sub(r'"request_id":"[^"]*"', "", answer.text)
