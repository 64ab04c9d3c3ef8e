"""Inviting people and accepting: with a new account or an old one; each token is good once, for a while."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app_server import PASSWORD, ApiUser, AppServer, running_server
from tests.mails import wait_for_mail
from tests.tables import rows

AT_ONCE = 20
ADDRESS = "grace@example.com"


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def test_who_is_invited_by_mail_joins_with_a_new_account(server: AppServer, ada: ApiUser) -> None:
    made = ada.invite(ADDRESS, "member")
    assert made.keys() == {"id", "email", "role", "expires_at", "created_at", "token"}
    assert made["token"].startswith("easel_iv_")
    mail = wait_for_mail(server, ADDRESS)
    assert made["token"] in mail
    (listed,) = ada.http.get("/v1/invitations").json()["data"]
    assert listed == {name: value for name, value in made.items() if name != "token"}
    joined = accept(server, made["token"], password=PASSWORD, name="Grace Hopper")
    assert joined.status_code == 201
    assert joined.json().keys() == {"tenant", "role", "access_token", "refresh_token", "expires_in"}
    assert (joined.json()["tenant"], joined.json()["role"]) == (ada.signed_up["tenant"], "member")
    me = server.anyone().get("/v1/me", headers=bearer(joined.json()["access_token"])).json()
    assert (me["user"]["email"], me["user"]["name"], me["role"]) == (ADDRESS, "Grace Hopper", "member")
    assert ada.http.get("/v1/invitations").json()["data"] == []


def test_who_has_an_account_signs_in_and_accepts(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    token = ada.invite(stranger.email.upper(), "admin")["token"]
    anonymous = accept(server, token, password=PASSWORD)
    assert (anonymous.status_code, anonymous.json()["code"]) == (401, "sign_in_required")
    joined = stranger.http.post("/v1/invitations/acceptance", json={"token": token})
    assert (joined.status_code, joined.json()) == (201, {"tenant": ada.signed_up["tenant"], "role": "admin"})
    assert [one["role"] for one in stranger.http.get("/v1/me").json()["tenants"]] == ["owner", "admin"]


def test_an_invitation_is_for_its_address_alone(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    token = ada.invite(ADDRESS)["token"]
    refused = stranger.http.post("/v1/invitations/acceptance", json={"token": token})
    assert (refused.status_code, refused.json()["code"]) == (403, "wrong_account")
    assert accept(server, token, password=PASSWORD).status_code == 201


def test_a_key_accepts_nothing(server: AppServer, ada: ApiUser) -> None:
    key = ada.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"]
    answer = server.anyone().post("/v1/invitations/acceptance", json={"token": "x"}, headers=bearer(key))
    assert (answer.status_code, answer.json()["code"]) == (403, "user_required")


def test_every_token_that_is_not_good_is_answered_alike(server: AppServer, ada: ApiUser, database_url: str) -> None:
    used, revoked, replaced, expired = (ada.invite(f"{name}@example.com") for name in ("a", "b", "c", "d"))
    assert accept(server, used["token"], password=PASSWORD).status_code == 201
    assert ada.http.delete(f"/v1/invitations/{revoked['id']}").status_code == 204
    fresh = ada.invite("c@example.com", "admin")
    rows(database_url, "UPDATE invitations SET expires_at = now() WHERE email = 'd@example.com'")
    tokens = [used["token"], revoked["token"], replaced["token"], expired["token"], "easel_iv_never"]
    tokens += [ada.signed_up["access_token"], ada.signed_up["refresh_token"]]
    answers = [accept(server, token, password=PASSWORD) for token in tokens]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.json()["detail"] for answer in answers}) == 1
    assert accept(server, fresh["token"], password=PASSWORD).json()["role"] == "admin"


def test_a_new_account_needs_a_password(server: AppServer, ada: ApiUser) -> None:
    token = ada.invite(ADDRESS)["token"]
    for body in ({}, {"password": "short"}, {"password": "password123"}, {"password": ADDRESS}):
        answer = accept(server, token, **body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "password"), body
    assert accept(server, token, password=PASSWORD).status_code == 201


def test_a_member_is_not_invited_again(ada: ApiUser) -> None:
    answer = ada.http.post("/v1/invitations", json={"email": ada.email.upper(), "role": "member"})
    assert (answer.status_code, answer.json()["code"]) == (409, "already_member")


@pytest.mark.parametrize("email", [" grace@example.com ", "GRACE@EXAMPLE.COM", "Grace@Example.com"])
def test_an_address_is_the_same_however_it_is_written(ada: ApiUser, email: str) -> None:
    assert ada.invite(email)["email"] == ADDRESS


@pytest.mark.parametrize("email", ["grace", "grace@", "@example.com", "gr ace@example.com", "grace@exa\0mple.com", ""])
def test_what_is_no_address_is_refused(ada: ApiUser, email: str) -> None:
    answer = ada.http.post("/v1/invitations", json={"email": email, "role": "member"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "email")


def test_an_address_of_another_script_is_accepted(server: AppServer, ada: ApiUser) -> None:
    token = ada.invite("grace@bücher.example")["token"]
    assert accept(server, token, password=PASSWORD).status_code == 201
    body = {"email": "grace@xn--bcher-kva.example", "password": PASSWORD}
    assert server.anyone().post("/v1/tokens", json=body).status_code == 201


def test_of_many_who_accept_at_once_one_joins(server: AppServer, ada: ApiUser, database_url: str) -> None:
    token = ada.invite(ADDRESS)["token"]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        accepting = [pool.submit(accept, server, token, password=PASSWORD) for _ in range(AT_ONCE)]
        codes = [one.result().status_code for one in accepting]
    assert codes.count(201) == 1, codes
    assert set(codes) <= {201, 404, 401, 429}
    assert rows(database_url, "SELECT count(*) FROM memberships") == [(2,)]


@pytest.fixture
def closed_server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with running_server(database_url, provider_url, tmp_path / "closed", signup="closed") as closed:
        yield closed


def test_where_sign_up_is_closed_nobody_gets_a_new_account(ada: ApiUser, closed_server: AppServer) -> None:
    token = ada.invite(ADDRESS)["token"]
    answer = accept(closed_server, token, password=PASSWORD)
    assert (answer.status_code, answer.json()["code"]) == (403, "signup_closed")
    body = {"name": "Second"}
    with ada.at(closed_server.base_url) as client:
        made = client.post("/v1/tenants", json=body)
    assert (made.status_code, made.json()["code"]) == (403, "signup_closed")


def accept(server: AppServer, token: str, **fields: Any) -> httpx.Response:
    return server.anyone().post("/v1/invitations/acceptance", json={"token": token, **fields})


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}
