"""Members and their roles: joining, changing, removing, leaving; a tenant always has an owner."""

import asyncio

import httpx
import pytest
from sqlalchemy import text

from app.db import Database
from tests import timeouts
from tests.app_server import ApiUser, AppServer
from tests.tables import rows


def test_members_see_each_other_with_their_roles(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    viewer = server.sign_up_invited(ada, "viewer")
    assert viewer.http.patch("/v1/me", json={"name": "Grace Hopper"}).json()["name"] == "Grace Hopper"
    listed = viewer.http.get("/v1/members").json()["data"]
    assert [(one["user_id"], one["email"], one["name"], one["role"]) for one in listed] == [
        (ada.id, ada.email, None, "owner"),
        (viewer.id, viewer.email, "Grace Hopper", "viewer"),
    ]
    first = viewer.http.get("/v1/members", params={"limit": 1}).json()
    second = viewer.http.get("/v1/members", params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert [*first["data"], *second["data"]] == listed
    assert viewer.id not in stranger.http.get("/v1/members").text


def test_a_role_holds_from_the_next_request_on(server: AppServer, ada: ApiUser) -> None:
    member = server.sign_up_invited(ada, "member")
    run = member.start("Hello")
    answer = ada.http.patch(f"/v1/members/{member.id}", json={"role": "viewer"})
    assert (answer.status_code, answer.json()["role"]) == (200, "viewer")
    refused = member.http.post("/v1/runs", json={"input": "Hello"})
    assert (refused.status_code, refused.json()["needs_role"]) == (403, "member")
    assert member.http.get(f"/v1/runs/{run['id']}").status_code == 200
    assert member.http.get("/v1/me").json()["role"] == "viewer"


def test_who_is_removed_loses_everything_with_the_next_request_and_what_they_made_stays_unseen(
    own_server: AppServer, database_url: str
) -> None:
    ada = own_server.sign_up()
    member = own_server.sign_up_invited(ada, "member")
    conversation = member.start("Hello")["conversation_id"]
    key = member.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"]
    assert ada.http.delete(f"/v1/members/{member.id}").status_code == 204
    refused = member.http.get(f"/v1/conversations/{conversation}")
    assert (refused.status_code, refused.json()["code"]) == (403, "no_tenant")
    assert own_server.anyone().get("/v1/me", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert member.http.get("/v1/me").json()["tenants"] == []
    assert ada.http.get(f"/v1/conversations/{conversation}").status_code == 404
    assert rows(database_url, "SELECT id::text FROM conversations") == [(conversation,)]
    assert ada.http.delete(f"/v1/members/{member.id}").status_code == 404


def test_a_member_leaves(server: AppServer, ada: ApiUser) -> None:
    viewer = server.sign_up_invited(ada, "viewer")
    assert viewer.http.delete(f"/v1/members/{viewer.id}").status_code == 204
    assert [one["user_id"] for one in ada.http.get("/v1/members").json()["data"]] == [ada.id]


def test_a_member_removes_nobody_else(server: AppServer, ada: ApiUser) -> None:
    member, other = (server.sign_up_invited(ada, "member") for _ in range(2))
    refused = member.http.delete(f"/v1/members/{other.id}")
    assert (refused.status_code, refused.json()["needs_role"]) == (403, "admin")


@pytest.mark.parametrize("action", ["demote", "leave"])
def test_the_last_owner_stays(server: AppServer, ada: ApiUser, action: str) -> None:
    server.sign_up_invited(ada, "admin")
    refused = (
        ada.http.patch(f"/v1/members/{ada.id}", json={"role": "admin"})
        if action == "demote"
        else ada.http.delete(f"/v1/members/{ada.id}")
    )
    assert (refused.status_code, refused.json()["code"]) == (409, "last_owner")
    assert ada.http.get("/v1/me").json()["role"] == "owner"


def test_an_owner_among_several_may_go(server: AppServer, ada: ApiUser) -> None:
    other = server.sign_up_invited(ada, "owner")
    assert other.http.delete(f"/v1/members/{ada.id}").status_code == 204
    assert other.http.patch(f"/v1/members/{other.id}", json={"role": "owner"}).status_code == 200
    assert other.http.delete(f"/v1/members/{other.id}").json()["code"] == "last_owner"


async def test_of_owners_who_demote_each_other_at_once_one_is_left(own_server: AppServer, database_url: str) -> None:
    ada = own_server.sign_up()
    grace = own_server.sign_up_invited(ada, "owner")

    def demote(user: ApiUser, other: ApiUser) -> httpx.Response:
        return user.http.patch(f"/v1/members/{other.id}", json={"role": "member"})

    database = Database(database_url, pool_size=1)
    async with database.engine.begin() as connection:
        # Both requests have begun, and wait for the same rows.
        await connection.execute(text("SELECT FROM memberships FOR UPDATE"))
        demoting = [asyncio.create_task(asyncio.to_thread(demote, *pair)) for pair in ((ada, grace), (grace, ada))]
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        async with asyncio.timeout(timeouts.PATIENCE):
            while await connection.scalar(waiting) != 2:
                await asyncio.sleep(0.02)
    answers = await asyncio.gather(*demoting)
    await database.close()
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert [answer.json()["code"] for answer in answers if answer.status_code == 409] == ["last_owner"]
    assert sorted(user.http.get("/v1/me").json()["role"] for user in (ada, grace)) == ["member", "owner"]


def test_an_admin_makes_no_owner_and_touches_none(server: AppServer, ada: ApiUser) -> None:
    admin, member = server.sign_up_invited(ada, "admin"), server.sign_up_invited(ada, "member")
    refused = [
        admin.http.patch(f"/v1/members/{admin.id}", json={"role": "owner"}),
        admin.http.patch(f"/v1/members/{member.id}", json={"role": "owner"}),
        admin.http.patch(f"/v1/members/{ada.id}", json={"role": "member"}),
        admin.http.delete(f"/v1/members/{ada.id}"),
        admin.http.post("/v1/invitations", json={"email": "grace@example.com", "role": "owner"}),
    ]
    assert [(answer.status_code, answer.json()["needs_role"]) for answer in refused] == [(403, "owner")] * 5
    assert admin.http.patch(f"/v1/members/{member.id}", json={"role": "admin"}).status_code == 200


def test_an_unknown_role_is_refused_with_the_known_ones(ada: ApiUser) -> None:
    answer = ada.http.patch(f"/v1/members/{ada.id}", json={"role": "king"})
    assert answer.status_code == 422
    assert "viewer" in answer.text


def test_a_user_of_several_tenants_says_which_one_is_meant(server: AppServer, ada: ApiUser) -> None:
    answer = ada.http.post("/v1/tenants", json={"name": "Second"})
    assert answer.status_code == 201
    second = answer.json()
    assert second.keys() == {"id", "name", "plan", "retention_days", "suspended", "created_at"}
    me = ada.http.get("/v1/me").json()
    assert (me["tenant"], me["role"]) == (None, None)
    assert [(one["id"], one["name"], one["role"]) for one in me["tenants"]] == [
        (ada.signed_up["tenant"]["id"], "Ada's", "owner"),
        (second["id"], "Second", "owner"),
    ]
    unnamed = ada.http.get("/v1/conversations")
    assert (unnamed.status_code, unnamed.json()["code"]) == (422, "tenant_required")
    named = {"X-Tenant-Id": second["id"]}
    assert ada.http.get("/v1/conversations", headers=named).status_code == 200
    assert ada.http.get("/v1/tenants/current", headers=named).json() == second
    assert ada.http.get("/v1/me", headers=named).json()["tenant"] == {"id": second["id"], "name": "Second"}


def test_an_admin_renames_the_tenant_and_sets_its_retention(server: AppServer, ada: ApiUser) -> None:
    admin = server.sign_up_invited(ada, "admin")
    changed = admin.http.patch("/v1/tenants/current", json={"name": "Ada and Grace", "retention_days": 90})
    assert (changed.json()["name"], changed.json()["retention_days"]) == ("Ada and Grace", 90)
    assert admin.http.patch("/v1/tenants/current", json={"retention_days": None}).json()["retention_days"] is None
    assert ada.http.get("/v1/tenants/current").json()["name"] == "Ada and Grace"
    for wrong in ({"retention_days": 0}, {"retention_days": 3651}, {"name": ""}, {"name": None}, {"plan": "gold"}):
        assert ada.http.patch("/v1/tenants/current", json=wrong).status_code == 422, wrong
