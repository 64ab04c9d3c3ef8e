"""What an operator does to tenants, users and keys on the command line; each change is in the tenant's audit log."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.cli import main
from tests.app_server import PASSWORD, ApiUser, AppServer, Easel

UNKNOWN = "019ab3f0-5d1c-7d5e-9a57-0c2f6f1f2b11"


@pytest.fixture
def server(own_server: AppServer) -> AppServer:
    return own_server


def listed(easel: Easel, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(easel(*arguments, "--json"))
    return found


def test_tenants_are_listed_and_shown(easel: Easel, server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    member = server.sign_up_invited(ada, "member")
    tenants = listed(easel, "tenants", "list")
    assert [(one["name"], one["members"], one["suspended"]) for one in tenants] == [
        ("Ada's", 2, False),
        ("Stranger's", 1, False),
    ]
    (shown,) = listed(easel, "tenants", "show", tenants[0]["id"])
    assert {(one["email"], one["role"]) for one in shown["members"]} == {(ada.email, "owner"), (member.email, "member")}
    table = easel("tenants", "list")
    assert re.search(r"^id +name +plan +suspended +created_at +members\n", table)
    assert len(table.splitlines()) == 3
    assert member.email in easel("tenants", "show", tenants[0]["id"])


def test_a_suspended_tenant_is_closed_until_it_is_resumed(easel: Easel, ada: ApiUser, stranger: ApiUser) -> None:
    tenant = ada.signed_up["tenant"]["id"]
    assert listed(easel, "tenants", "suspend", tenant)[0]["suspended"] is True
    easel("tenants", "suspend", tenant)
    assert ada.http.get("/v1/me").json()["code"] == "tenant_suspended"
    assert stranger.http.get("/v1/me").status_code == 200
    easel("tenants", "resume", tenant)
    entries = ada.http.get("/v1/audit").json()["data"]
    assert [(one["action"], one["actor"]) for one in entries[:2]] == [
        ("tenant.resumed", {"type": "operator", "id": None, "email": None}),
        ("tenant.suspended", {"type": "operator", "id": None, "email": None}),
    ]
    assert entries[2]["action"] == "tenant.created"


def test_a_tenant_gets_another_plan(easel: Easel, ada: ApiUser) -> None:
    easel("tenants", "plan", ada.signed_up["tenant"]["id"], "trial")
    assert ada.http.get("/v1/tenants/current").json()["plan"] == "trial"
    (newest, *_) = ada.http.get("/v1/audit").json()["data"]
    assert (newest["action"], newest["changes"]) == ("tenant.plan_changed", {"plan": ["unlimited", "trial"]})


def test_a_disabled_user_is_out_until_they_are_enabled(easel: Easel, ada: ApiUser) -> None:
    easel("users", "disable", ada.email.upper())
    assert ada.http.get("/v1/me").status_code == 401
    assert [one["disabled"] for one in listed(easel, "users", "list")] == [True]
    easel("users", "enable", ada.email)
    assert ada.http.get("/v1/me").status_code == 200


def test_what_is_done_to_a_user_is_in_the_log_of_each_of_their_tenants(
    easel: Easel, server: AppServer, ada: ApiUser, stranger: ApiUser
) -> None:
    member = server.sign_up_invited(ada, "member")
    invitation = {"token": stranger.invite(member.email)["token"]}
    assert member.http.post("/v1/invitations/acceptance", json=invitation).status_code == 201
    for command in ("disable", "disable", "enable", "enable", "reset-password"):
        easel("users", command, member.email)
    for owner in (ada, stranger):
        *entries, before = owner.http.get("/v1/audit").json()["data"][:4]
        assert before["action"] == "member.joined"
        assert [(one["action"], one["changes"]) for one in entries] == [
            ("password.reset_issued", {}),
            ("user.enabled", {"disabled": [True, False]}),
            ("user.disabled", {"disabled": [False, True]}),
        ]
        assert {one["actor"]["type"] for one in entries} == {"operator"}
        assert [one["target"] for one in entries] == [{"type": "user", "id": member.id}] * 3


def test_a_forgotten_password_is_reset_by_a_printed_link(
    easel: Easel, server: AppServer, ada: ApiUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUBLIC_URL", "https://api.example.com")
    printed = easel("users", "reset-password", ada.email)
    (token,) = re.findall(r"^https://api\.example\.com/password-reset#token=(easel_pr_\S+)$", printed, re.MULTILINE)
    body = {"token": token, "new_password": "another long password"}
    assert server.anyone().put("/v1/password-resets", json=body).status_code == 204
    assert server.anyone().post("/v1/tokens", json={"email": ada.email, "password": PASSWORD}).status_code == 401


def test_a_key_is_listed_without_its_secret_and_revoked(easel: Easel, server: AppServer, ada: ApiUser) -> None:
    key = ada.http.post("/v1/api-keys", json={"name": "A key", "scopes": ["chat:read"]}).json()
    (found,) = listed(easel, "keys", "list", ada.signed_up["tenant"]["id"])
    assert (found["id"], found["user"], found["scopes"]) == (key["id"], ada.email, ["chat:read"])
    assert key["key"] not in json.dumps(found)
    assert "  chat:read\n" in easel("keys", "list", ada.signed_up["tenant"]["id"])
    easel("keys", "revoke", key["id"])
    refused = server.anyone().get("/v1/me", headers={"Authorization": f"Bearer {key['key']}"})
    assert refused.status_code == 401
    easel("keys", "revoke", key["id"])
    newest, before, *_ = ada.http.get("/v1/audit").json()["data"]
    assert (newest["action"], newest["actor"]["type"]) == ("api_key.revoked", "operator")
    assert before["action"] == "api_key.created"


def test_machines_read_what_the_api_writes(easel: Easel, ada: ApiUser) -> None:
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    ada.http.post("/v1/api-keys", json={"name": "A key", "expires_at": expires})
    (of_api,) = ada.http.get("/v1/api-keys").json()["data"]
    (found,) = listed(easel, "keys", "list", ada.signed_up["tenant"]["id"])
    common = found.keys() & of_api.keys()
    assert common >= {"id", "scopes", "expires_at"}
    assert {key: found[key] for key in common} == {key: of_api[key] for key in common}
    assert of_api["expires_at"].endswith("Z")
    assert " all " in easel("keys", "list", ada.signed_up["tenant"]["id"])
    for command in (("tenants", "list"), ("users", "list")):
        (one,) = listed(easel, *command)
        assert re.fullmatch(r"[\d-]{10}T[\d:.]+Z", one["created_at"])
    reset = listed(easel, "users", "reset-password", ada.email)[0]
    assert reset["expires_at"].endswith("Z")


@pytest.mark.parametrize(
    "arguments",
    [
        ("tenants", "show", UNKNOWN),
        ("tenants", "suspend", UNKNOWN),
        ("tenants", "plan", UNKNOWN, "trial"),
        ("users", "disable", "nobody@example.com"),
        ("users", "reset-password", "nobody@example.com"),
        ("keys", "list", UNKNOWN),
        ("keys", "revoke", UNKNOWN),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(
    easel: Easel, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "argv", ["easel", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert re.fullmatch(r"easel: There is no (tenant|user|API key) .*\.", str(ended.value.code))
