"""The audit log: who did what, written with the change, readable by admins, changed by nobody."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.db import Database
from tests.app_server import PASSWORD, ApiUser, AppServer
from tests.tables import rows


def test_each_change_is_written_down_with_who_made_it(server: AppServer, ada: ApiUser) -> None:
    member = server.sign_up_invited(ada, "member")
    ada.http.patch(f"/v1/members/{member.id}", json={"role": "admin"})
    key = member.http.post("/v1/api-keys", json={"name": "Secret name", "scopes": ["audit:read"]}).json()
    member.http.delete(f"/v1/api-keys/{key['id']}")
    invitation = member.invite("grace@example.com", "viewer")
    member.http.delete(f"/v1/invitations/{invitation['id']}")
    changed = ada.http.patch("/v1/tenants/current", json={"name": "New", "retention_days": 30})
    new = {"current_password": PASSWORD, "new_password": "another long password"}
    assert member.http.put("/v1/me/password", json=new).status_code == 204
    ada.http.delete(f"/v1/members/{member.id}")
    entries = listed(ada)
    assert [(one["action"], one["actor"]["id"], one["target"]["type"], one["changes"]) for one in entries] == [
        ("member.removed", ada.id, "user", {"role": ["admin", None]}),
        ("password.changed", member.id, "user", {}),
        ("tenant.updated", ada.id, "tenant", {"name": ["Ada's", "New"], "retention_days": [None, 30]}),
        ("invitation.revoked", member.id, "invitation", {"role": ["viewer", None]}),
        ("invitation.created", member.id, "invitation", {"role": [None, "viewer"]}),
        ("api_key.revoked", member.id, "api_key", {}),
        ("api_key.created", member.id, "api_key", {"scopes": [None, ["audit:read"]]}),
        ("member.role_changed", ada.id, "user", {"role": ["member", "admin"]}),
        ("member.joined", member.id, "user", {"role": [None, "member"]}),
        ("invitation.created", ada.id, "invitation", {"role": [None, "member"]}),
        ("tenant.created", ada.id, "tenant", {}),
    ]
    renamed = entries[2]
    assert renamed["actor"] == {"type": "user", "id": ada.id, "email": ada.email}
    assert renamed["target"]["id"] == ada.signed_up["tenant"]["id"]
    assert (renamed["request_id"], renamed["ip"]) == (changed.headers["X-Request-Id"], "127.0.0.1")
    # Who was removed is still named.
    assert entries[1]["actor"]["email"] == member.email


def test_what_is_refused_is_not_written_down(ada: ApiUser) -> None:
    before = listed(ada)
    assert ada.http.patch(f"/v1/members/{ada.id}", json={"role": "viewer"}).status_code == 409
    for days in (0, True, "30", 30.5):
        assert ada.http.patch("/v1/tenants/current", json={"retention_days": days}).status_code == 422
    assert ada.http.patch("/v1/tenants/current", json={"name": "Ada's"}).status_code == 200
    assert listed(ada) == before


def test_the_log_is_searched_by_action_actor_and_target(server: AppServer, ada: ApiUser) -> None:
    member = server.sign_up_invited(ada, "member")
    key = member.http.post("/v1/api-keys", json={"name": "A key"}).json()
    assert [one["action"] for one in listed(ada, action="member.joined")] == ["member.joined"]
    assert [one["action"] for one in listed(ada, actor_id=member.id)] == ["api_key.created", "member.joined"]
    assert [one["action"] for one in listed(ada, target_id=key["id"])] == ["api_key.created"]
    assert ada.http.get("/v1/audit", params={"action": "nothing"}).status_code == 422


def test_a_key_with_the_scope_reads_the_log_and_is_named_as_the_actor_of_what_it_does(
    server: AppServer, ada: ApiUser
) -> None:
    key = ada.http.post("/v1/api-keys", json={"name": "A key", "scopes": ["audit:read"]}).json()
    headers = {"Authorization": f"Bearer {key['key']}"}
    assert server.anyone().get("/v1/audit", headers=headers).status_code == 200


async def test_nobody_changes_the_log(server: AppServer, ada: ApiUser) -> None:
    tenant = ada.signed_up["tenant"]["id"]
    assert server.settings.database_url
    database = Database(server.settings.database_url.get_secret_value(), pool_size=1)
    try:
        for statement in ("UPDATE audit_entries SET ip = NULL", "DELETE FROM audit_entries"):
            with pytest.raises(DBAPIError, match="permission denied"):
                async with database.tenant(tenant) as session:
                    await session.execute(text(statement))
    finally:
        await database.close()


def test_an_entry_outlives_its_person_without_their_address(own_server: AppServer, database_url: str) -> None:
    ada = own_server.sign_up()
    member = own_server.sign_up_invited(ada, "member")
    rows(database_url, "DELETE FROM users WHERE email = :email", {"email": member.email})
    (joined,) = listed(ada, action="member.joined")
    assert joined["actor"] == {"type": "user", "id": member.id, "email": None}


def listed(user: ApiUser, **query: str) -> list[dict[str, Any]]:
    answer = user.http.get("/v1/audit", params={"limit": "100", **query})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found
