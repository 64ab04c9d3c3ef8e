"""A user's sign-ins: seeing them and ending them, one or all."""

import httpx

from tests.app_server import PASSWORD, ApiUser, AppServer


def test_a_user_sees_where_they_are_signed_in(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    phone = sign_in(server, ada, "Phone/1.0")
    newest, oldest = ada.sign_ins()
    assert newest.keys() == {"id", "created_at", "last_used_at", "user_agent", "current"}
    assert (newest["user_agent"], newest["last_used_at"], newest["current"]) == ("Phone/1.0", None, False)
    assert oldest["current"] is True
    assert oldest["last_used_at"] is not None
    assert newest["id"] not in stranger.http.get("/v1/tokens").text
    seen = server.anyone().get("/v1/tokens", headers=bearer(phone["access_token"])).json()["data"]
    assert [one["current"] for one in seen] == [True, False]


def test_a_refreshed_sign_in_stays_the_same_one(server: AppServer, ada: ApiUser) -> None:
    server.anyone().post("/v1/tokens/refresh", json={"refresh_token": ada.signed_up["refresh_token"]})
    assert len(ada.sign_ins()) == 1


def test_one_that_was_lost_is_ended(server: AppServer, ada: ApiUser) -> None:
    phone = sign_in(server, ada, "Phone/1.0")
    (lost,) = [one for one in ada.sign_ins() if not one["current"]]
    assert ada.http.delete(f"/v1/tokens/{lost['id']}").status_code == 204
    assert server.anyone().get("/v1/me", headers=bearer(phone["access_token"])).status_code == 401
    refreshed = server.anyone().post("/v1/tokens/refresh", json={"refresh_token": phone["refresh_token"]})
    assert refreshed.status_code == 401
    assert ada.http.delete(f"/v1/tokens/{lost['id']}").status_code == 404
    assert len(ada.sign_ins()) == 1


def test_all_are_ended_this_one_too(server: AppServer, ada: ApiUser) -> None:
    phone = sign_in(server, ada, "Phone/1.0")
    assert ada.http.delete("/v1/tokens").status_code == 204
    for token in (phone["access_token"], ada.signed_up["access_token"]):
        assert server.anyone().get("/v1/me", headers=bearer(token)).status_code == 401


def test_a_key_touches_no_sign_in(server: AppServer, ada: ApiUser) -> None:
    key = ada.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"]
    answer = server.anyone().delete("/v1/tokens/current", headers=bearer(key))
    assert (answer.status_code, answer.json()["code"]) == (403, "user_required")


def test_a_user_has_a_name(ada: ApiUser) -> None:
    assert ada.http.get("/v1/me").json()["user"]["name"] is None
    changed = ada.http.patch("/v1/me", json={"name": "Ada Lovelace"})
    assert changed.json() == {"id": ada.id, "email": ada.email, "name": "Ada Lovelace"}
    assert ada.http.get("/v1/me").json()["user"] == changed.json()
    for wrong in ("", "  ", "a\0b", "x" * 201, None):
        assert ada.http.patch("/v1/me", json={"name": wrong}).status_code == 422


def sign_in(server: AppServer, user: ApiUser, user_agent: str) -> dict[str, str]:
    body = {"email": user.email, "password": PASSWORD}
    answer = httpx.post(f"{server.base_url}/v1/tokens", json=body, headers={"User-Agent": user_agent})
    assert answer.status_code == 201, answer.text
    tokens: dict[str, str] = answer.json()
    return tokens


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}
