"""API keys of a tenant: each member's own, all of them for admins."""

from typing import Any, cast

from tests.app_server import ApiUser, AppServer


def test_a_key_is_listed_by_its_last_characters_and_its_user(ada: ApiUser) -> None:
    made = make(ada)
    assert made["hint"] == made["key"][-4:]
    (listed,) = ada.http.get("/v1/api-keys").json()["data"]
    assert listed == {name: value for name, value in made.items() if name != "key"}
    assert listed["user_id"] == ada.id


def test_an_admin_sees_and_revokes_every_key_and_a_member_their_own(server: AppServer, ada: ApiUser) -> None:
    admin, member = server.sign_up_invited(ada, "admin"), server.sign_up_invited(ada, "member")
    keys = {user: make(user) for user in (ada, admin, member)}
    everyones = admin.http.get("/v1/api-keys", params={"all": True}).json()["data"]
    assert {key["id"] for key in everyones} == {key["id"] for key in keys.values()}
    assert [key["id"] for key in admin.http.get("/v1/api-keys").json()["data"]] == [keys[admin]["id"]]
    refused = member.http.get("/v1/api-keys", params={"all": True})
    assert (refused.status_code, refused.json()["needs_role"]) == (403, "admin")
    assert member.http.delete(f"/v1/api-keys/{keys[ada]['id']}").status_code == 404
    assert admin.http.delete(f"/v1/api-keys/{keys[ada]['id']}").status_code == 204
    assert admin.http.delete(f"/v1/api-keys/{keys[ada]['id']}").status_code == 404
    assert status(server, keys[ada]["key"]) == 401
    assert status(server, keys[member]["key"]) == 200


def test_a_key_that_would_have_expired_already_is_refused(ada: ApiUser) -> None:
    body = {"name": "A key", "expires_at": "2020-01-01T00:00:00Z"}
    answer = ada.http.post("/v1/api-keys", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "expires_at")


def test_a_key_does_not_open_another_tenant_of_its_user(server: AppServer, ada: ApiUser) -> None:
    key = make(ada)["key"]
    second = ada.http.post("/v1/tenants", json={"name": "Second"}).json()["id"]
    anyone = server.anyone()
    me = anyone.get("/v1/me", headers={"Authorization": f"Bearer {key}"}).json()
    assert [one["id"] for one in me["tenants"]] == [ada.signed_up["tenant"]["id"]]
    headers = {"Authorization": f"Bearer {key}", "X-Tenant-Id": second}
    assert anyone.get("/v1/me", headers=headers).status_code == 404
    assert anyone.get("/v1/conversations", headers=headers).status_code == 404


def make(user: ApiUser, **fields: Any) -> dict[str, Any]:
    answer = user.http.post("/v1/api-keys", json={"name": "A key", **fields})
    assert answer.status_code == 201, answer.text
    return cast(dict[str, Any], answer.json())


def status(server: AppServer, credential: str) -> int:
    return server.anyone().get("/v1/me", headers={"Authorization": f"Bearer {credential}"}).status_code
