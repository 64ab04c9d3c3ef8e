"""Erasing a tenant, a member, oneself: what is gone, what is kept, who may ask, and whom it does not touch."""

import asyncio
import hashlib
import re
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.logins import EMBEDDED_LOGIN
from app.storage import keys
from app.storage.store import Store
from tests import timeouts
from tests.app_server import PASSWORD, ApiUser, AppServer, one, running_server
from tests.tables import every_value, rows

Json = dict[str, Any]

# By ids alone: what was requested, and the ledger.
KEPT = {"erasures", "provider_calls", "usage_counters", "usage_entries"}
TABLES_WITH_TENANT = """
SELECT table_name FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND column_name = 'tenant_id' ORDER BY 1
"""


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    """What is on its way into the store is waited for, for a lease."""
    with running_server(database_url, provider_url, tmp_path, login=EMBEDDED_LOGIN, run_lease_seconds=2) as server:
        yield server


@pytest.mark.slow
def test_nothing_of_an_erased_tenant_is_left_and_its_neighbour_is_as_before(
    server: AppServer, ada: ApiUser, stranger: ApiUser, database_url: str, provider_url: str
) -> None:
    colleague = server.sign_up_invited(ada, "member")
    drawn = [one(user.draw(image={"partial_images": 1}), "attachment.created") for user in (ada, colleague, stranger)]
    upload(ada)
    ada.invite("grace@example.com")
    key = make_key(ada)
    wait_until_quiet(database_url)
    mine, neighbours = tenant_of(ada), tenant_of(stranger)
    before = counts(database_url, neighbours), objects(server, neighbours)
    total, stored = counts(database_url, mine), objects(server, mine)
    responses = at_provider(database_url, mine)
    assert len(stored) >= 5
    assert len(responses) >= 2

    requested = erase_tenant(ada, "Ada's")
    assert set(requested) == {"receipt", "status"}
    assert re.fullmatch(r"easel_er_[\w-]{43}", requested["receipt"])
    for user in (ada, colleague):
        refused = user.http.get("/v1/conversations")
        assert (refused.status_code, refused.json()["code"]) == (403, "no_tenant")
        assert user.http.get("/v1/conversations", headers={"X-Tenant-Id": mine}).status_code == 404
        assert user.http.get("/v1/me").json()["tenants"] == []
    assert server.anyone().get("/v1/me", headers={"Authorization": f"Bearer {key}"}).status_code == 401

    done = wait_for(server, requested["receipt"])
    assert counts(database_url, mine) == {}
    assert rows(database_url, "SELECT 1 FROM tenants WHERE id = :id", {"id": mine}) == []
    assert objects(server, mine) == {}
    assert deleted_responses(provider_url) >= set(responses)
    assert done["what"] == "tenant"
    assert done["requested_at"] < done["completed_at"]
    assert done["counts"]["objects"] == len(stored)
    assert done["counts"]["bytes"] == sum(size for size, _ in stored.values())
    assert done["counts"]["provider"] == len(responses)
    assert done["counts"]["rows"] >= total["messages"] + total["runs"] + total["attachments"] + total["audit_entries"]
    for event in drawn[:2]:
        assert httpx.get(event["attachment"]["url"]).status_code == 404
    assert httpx.get(drawn[2]["attachment"]["url"]).status_code == 200
    assert (counts(database_url, neighbours), objects(server, neighbours)) == before


@pytest.mark.slow
def test_the_books_and_the_receipt_are_kept_by_ids_alone(server: AppServer, ada: ApiUser, database_url: str) -> None:
    ada.ask("Hello, this is a secret")
    used = rows(database_url, "SELECT id, tenant_id, user_id, run_id, kind, quantity FROM usage_entries ORDER BY id")
    assert used
    receipt = erase_tenant(ada, "Ada's")["receipt"]
    wait_for(server, receipt)
    receipt_of_user = erase_me(ada)["receipt"]
    assert wait_for(server, receipt_of_user)["what"] == "user"
    assert wait_for(server, receipt)["status"] == "completed"
    kept = rows(database_url, "SELECT id, tenant_id, user_id, run_id, kind, quantity FROM usage_entries ORDER BY id")
    assert kept == used
    left = every_value(database_url)
    for secret in ("this is a secret", ada.email, "Ada's", receipt, receipt_of_user):
        assert [name for name, values in left.items() if any(secret.encode() in value for value in values)] == []
    assert left["erasures.receipt_hash"]


@pytest.mark.slow
def test_a_member_is_removed_with_all_that_they_made(
    server: AppServer, ada: ApiUser, stranger: ApiUser, database_url: str, provider_url: str
) -> None:
    member = server.sign_up_invited(ada, "member")
    ada.draw()
    upload(ada)
    wait_until_quiet(database_url)
    hers = objects(server, tenant_of(ada))
    member.draw()
    upload(member)
    wait_until_quiet(database_url)
    theirs = len(objects(server, tenant_of(ada))) - len(hers)
    answer = ada.http.delete(f"/v1/members/{member.id}", params={"data": "erase"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert member.http.get("/v1/conversations").json()["code"] == "no_tenant"
    done = wait_for(server, answer.json()["receipt"])
    assert done["what"] == "user"
    assert (done["counts"]["provider"], done["counts"]["objects"]) == (1, theirs)
    for table in ("conversations", "runs", "attachments", "api_keys", "memberships", "idempotency_keys"):
        found = rows(database_url, f"SELECT DISTINCT user_id::text FROM {table}")  # noqa: S608 - a table of ours
        assert (member.id,) not in found, table
    assert objects(server, tenant_of(ada)) == hers
    assert len(ada.http.get("/v1/attachments").json()["data"]) == 2
    # They have an account still, and the log says what happened, and who they were by their id alone.
    assert member.http.get("/v1/me").status_code == 200
    joined = ada.http.get("/v1/audit", params={"actor_id": member.id}).json()["data"]
    assert {(entry["action"], entry["actor"]["email"]) for entry in joined} == {("member.joined", None)}
    assert audited(ada) == [
        ("system", None, "erasure.completed", member.id),
        ("user", ada.email, "erasure.requested", member.id),
        ("user", ada.email, "member.removed", member.id),
    ]


def test_without_data_a_member_is_removed_and_what_they_made_stays(server: AppServer, ada: ApiUser) -> None:
    member = server.sign_up_invited(ada, "member")
    assert ada.http.delete(f"/v1/members/{member.id}").status_code == 204
    assert ada.http.delete(f"/v1/members/{member.id}").status_code == 404
    assert ada.http.delete(f"/v1/members/{member.id}", params={"data": "keep"}).status_code == 422


@pytest.mark.slow
def test_what_a_member_made_who_went_is_erased_later(
    server: AppServer, ada: ApiUser, stranger: ApiUser, database_url: str
) -> None:
    member, admin = server.sign_up_invited(ada, "member"), server.sign_up_invited(ada, "admin")
    member.ask("Hello")
    wait_until_quiet(database_url)
    assert member.http.delete(f"/v1/members/{member.id}").status_code == 204
    path = f"/v1/members/{member.id}?data=erase"
    assert admin.http.delete(path).json()["needs_role"] == "owner"
    assert (stranger.http.delete(path).status_code, member.http.delete(path).status_code) == (404, 403)
    answer = ada.http.delete(path)
    assert answer.status_code == 202
    wait_for(server, answer.json()["receipt"])
    mine = "SELECT count(*) FROM conversations WHERE user_id = CAST(:id AS uuid)"
    assert rows(database_url, mine, {"id": member.id}) == [(0,)]
    assert audited(ada)[0] == ("system", None, "erasure.completed", member.id)


@pytest.mark.slow
def test_who_is_erased_leaves_every_tenant_and_the_one_that_was_theirs_alone_goes_with_them(
    server: AppServer, ada: ApiUser, stranger: ApiUser, database_url: str
) -> None:
    member = server.sign_up_invited(ada, "member")
    own = member.http.post("/v1/tenants", json={"name": "My own"}).json()["id"]
    member.http.headers["X-Tenant-Id"] = own
    member.draw()
    # A tenant that they have left: what they made is there still.
    invitation = stranger.invite(member.email)["token"]
    assert member.http.post("/v1/invitations/acceptance", json={"token": invitation}).status_code == 201
    member.http.headers["X-Tenant-Id"] = tenant_of(stranger)
    member.draw()
    assert member.http.delete(f"/v1/members/{member.id}").status_code == 204
    member.http.headers["X-Tenant-Id"] = tenant_of(ada)
    member.draw()
    hers = ada.draw()
    other = member.sign_in()
    del member.http.headers["X-Tenant-Id"]
    receipt = erase_me(member)["receipt"]
    for token in (member.signed_up["access_token"], other["access_token"]):
        assert server.anyone().get("/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    refused = server.anyone().post("/v1/tokens/refresh", json={"refresh_token": other["refresh_token"]})
    assert refused.status_code == 401
    done = wait_for(server, receipt)
    assert (done["what"], done["counts"]["provider"]) == ("user", 3)
    assert rows(database_url, "SELECT 1 FROM users WHERE id = :id", {"id": member.id}) == []
    for table in ("conversations", "runs", "attachments", "attachment_words", "sign_ins", "memberships", "api_keys"):
        query = f"SELECT 1 FROM {table} WHERE user_id = :id"  # noqa: S608 - a table of ours
        assert rows(database_url, query, {"id": member.id}) == [], table
    assert rows(database_url, "SELECT 1 FROM tenants WHERE id = :id", {"id": own}) == []
    assert objects(server, own) == objects(server, tenant_of(stranger)) == {}
    assert ada.http.get(f"/v1/runs/{hers[0]['run_id']}").status_code == 200
    # In the log they are an id.
    entries = ada.http.get("/v1/audit", params={"target_id": member.id}).json()["data"]
    assert {entry["action"] for entry in entries} >= {"member.joined", "member.left", "erasure.completed"}
    assert {entry["actor"]["email"] for entry in entries} == {None}
    assert (
        httpx.post(f"{server.base_url}/v1/tokens", json={"email": member.email, "password": PASSWORD}).status_code
        == 401
    )
    again = {"email": member.email, "password": PASSWORD, "tenant_name": "Anew"}
    assert server.anyone().post("/v1/signup", json=again).status_code == 201


def test_the_last_owner_of_others_is_not_erased(server: AppServer, ada: ApiUser) -> None:
    member = server.sign_up_invited(ada, "admin")
    for answer in (
        ada.http.request("DELETE", "/v1/me", json={"password": PASSWORD}),
        ada.http.delete(f"/v1/members/{ada.id}", params={"data": "erase"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "last_owner")
    assert ada.http.get("/v1/me").status_code == 200
    assert ada.http.patch(f"/v1/members/{member.id}", json={"role": "owner"}).status_code == 200
    assert ada.http.delete(f"/v1/members/{ada.id}", params={"data": "erase"}).status_code == 202
    assert member.http.get("/v1/members").json()["data"][0]["user_id"] == member.id


def test_a_wrong_name_or_password_erases_nothing(server: AppServer, ada: ApiUser) -> None:
    for name in ("ada's", "Ada's ", ""):
        refused = ada.http.request("DELETE", "/v1/tenants/current", json={"confirm": name})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["field"] == "confirm"
    for number in range(11):
        refused = ada.http.request("DELETE", "/v1/me", json={"password": f"wrong {number}"})
        expected = (403, "wrong_password") if number < 10 else (429, "too_many_attempts")
        assert (refused.status_code, refused.json()["code"]) == expected
    assert ada.http.request("DELETE", "/v1/me", json={"password": PASSWORD}).status_code == 429
    assert ada.http.get("/v1/tenants/current").status_code == 200


def test_only_an_owner_erases(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    victim = server.sign_up_invited(ada, "member")
    for role in ("viewer", "member", "admin"):
        user = server.sign_up_invited(ada, role)
        for answer in (
            user.http.request("DELETE", "/v1/tenants/current", json={"confirm": "Ada's"}),
            user.http.delete(f"/v1/members/{victim.id}", params={"data": "erase"}),
            user.http.delete(f"/v1/members/{user.id}", params={"data": "erase"}),
        ):
            assert (answer.status_code, answer.json().get("needs_role")) == (403, "owner")
    header = {"Authorization": f"Bearer {make_key(ada)}"}
    for method, path, body in (
        ("DELETE", "/v1/tenants/current", {"confirm": "Ada's"}),
        ("DELETE", f"/v1/members/{victim.id}?data=erase", None),
        ("DELETE", "/v1/me", {"password": PASSWORD}),
    ):
        refused = server.anyone().request(method, path, json=body, headers=header)
        assert (refused.status_code, refused.json()["code"]) == (403, "user_required")
    assert stranger.http.delete(f"/v1/members/{victim.id}", params={"data": "erase"}).status_code == 404
    elsewhere = {"X-Tenant-Id": tenant_of(ada)}
    answer = stranger.http.request("DELETE", "/v1/tenants/current", json={"confirm": "Ada's"}, headers=elsewhere)
    assert answer.status_code == 404
    assert victim.http.get("/v1/conversations").status_code == 200


def test_an_unknown_receipt_is_not_found(server: AppServer) -> None:
    for receipt in ("easel_er_" + "A" * 43, "x", "null"):
        assert server.anyone().get(f"/v1/erasures/{receipt}").status_code == 404


@pytest.mark.slow
def test_of_twenty_erasures_of_a_tenant_one_is_taken(server: AppServer, ada: ApiUser, database_url: str) -> None:
    ada.draw()
    answers = at_once(20, ada, "/v1/tenants/current", {"confirm": "Ada's"})
    assert [answer.status_code for answer in answers].count(202) == 1
    assert {answer.status_code for answer in answers} <= {202, 403, 404}
    assert rows(database_url, "SELECT count(*) FROM erasures") == [(1,)]
    (receipt,) = [answer.json()["receipt"] for answer in answers if answer.status_code == 202]
    wait_for(server, receipt)


def test_of_ten_erasures_of_oneself_one_is_taken(server: AppServer, ada: ApiUser, database_url: str) -> None:
    answers = at_once(10, ada, "/v1/me", {"password": PASSWORD})
    assert [answer.status_code for answer in answers].count(202) == 1
    assert {answer.status_code for answer in answers} <= {202, 401, 429}
    assert rows(database_url, "SELECT count(*) FROM erasures WHERE kind = 'account'") == [(1,)]


@pytest.mark.slow
def test_running_runs_are_stopped_and_what_they_bought_is_deleted_there(
    server: AppServer, ada: ApiUser, database_url: str, provider_url: str
) -> None:
    for _ in range(2):
        ada.start("Draw a house [offline: slow=1000]", agent_key="designer", image={"partial_images": 2})
    timeouts.wait_until(lambda: len(at_provider(database_url, tenant_of(ada))) == 2)
    asked = at_provider(database_url, tenant_of(ada))
    began = time.monotonic()
    done = wait_for(server, erase_tenant(ada, "Ada's")["receipt"])
    assert done["counts"]["provider"] == len(asked)
    # Drawing would have taken a quarter of an hour.
    assert time.monotonic() - began < timeouts.PATIENCE
    assert deleted_responses(provider_url) >= set(asked)
    assert counts(database_url, tenant_of(ada)) == {}
    assert objects(server, tenant_of(ada)) == {}
    assert booked(database_url) == [("settled", ["input_tokens"])] * 2


@pytest.mark.slow
def test_what_was_drawn_for_a_member_who_is_erased_is_booked(
    server: AppServer, ada: ApiUser, database_url: str
) -> None:
    member = server.sign_up_invited(ada, "member")
    member.start("Draw a house [offline: slow=1000]", agent_key="designer")
    timeouts.wait_until(lambda: len(at_provider(database_url, tenant_of(ada))) == 1)
    answer = ada.http.delete(f"/v1/members/{member.id}", params={"data": "erase"})
    wait_for(server, answer.json()["receipt"])
    assert rows(database_url, "SELECT id FROM runs") == []
    assert booked(database_url) == [("settled", ["input_tokens"])]


def booked(database_url: str) -> list[tuple[str, list[str]]]:
    """Of each call its state, and the kinds of its entries."""
    calls = "SELECT c.state, array_remove(array_agg(e.kind), NULL) FROM provider_calls c LEFT JOIN usage_entries e"
    found = rows(database_url, f"{calls} ON e.run_id = c.run_id AND e.call = c.number GROUP BY c.run_id, c.state")
    return [(state, kinds) for state, kinds in found]


@pytest.mark.slow
def test_a_run_that_its_worker_holds_is_waited_for(server: AppServer, ada: ApiUser, database_url: str) -> None:
    """It tells what the provider has of it as it ends; a lost worker's is taken over, and ends as well."""
    ada.ask("Hello")
    for written in ("usage_entries", "messages WHERE role = 'assistant'"):
        rows(database_url, f"DELETE FROM {written}")  # noqa: S608 - tables of ours
    held = "UPDATE runs SET status = 'running', lease_until = now() + interval '1 minute' RETURNING id"
    assert len(rows(database_url, held)) == 1
    receipt = erase_tenant(ada, "Ada's")["receipt"]
    timeouts.wait_until(lambda: rows(database_url, "SELECT status FROM erasures") == [("running",)])
    asked = "SELECT status, cancel_requested_at IS NOT NULL FROM runs"
    timeouts.wait_until(lambda: rows(database_url, asked) == [("running", True)])
    time.sleep(1)
    assert rows(database_url, asked) == [("running", True)]
    rows(database_url, "UPDATE runs SET lease_until = now() RETURNING id")
    assert wait_for(server, receipt)["counts"]["provider"] == 1


def at_once(number: int, user: ApiUser, path: str, body: Json) -> list[httpx.Response]:
    with ThreadPoolExecutor(number) as pool:
        asked = [pool.submit(user.http.request, "DELETE", path, json=body) for _ in range(number)]
        return [one_of_them.result() for one_of_them in asked]


def erase_tenant(user: ApiUser, name: str) -> Json:
    answer = user.http.request("DELETE", "/v1/tenants/current", json={"confirm": name})
    assert answer.status_code == 202, answer.text
    return answer.json()


def erase_me(user: ApiUser) -> Json:
    answer = user.http.request("DELETE", "/v1/me", json={"password": PASSWORD})
    assert answer.status_code == 202, answer.text
    return answer.json()


def wait_for(server: AppServer, receipt: str) -> Json:
    """What the receipt says in the end."""
    found: Json = {}

    def completed() -> bool:
        found.update(server.anyone().get(f"/v1/erasures/{receipt}").json())
        return found["status"] == "completed"

    timeouts.wait_until(completed)
    return found


def wait_until_quiet(database_url: str) -> None:
    """Until every image has its variants."""
    timeouts.wait_until(lambda: not rows(database_url, "SELECT 1 FROM attachments WHERE variants IS NULL"))


def tenant_of(user: ApiUser) -> str:
    return str((user.signed_up.get("tenant") or user.http.get("/v1/me").json()["tenant"])["id"])


def upload(user: ApiUser) -> None:
    assert user.http.post("/v1/attachments", files={"file": ("a.png", png())}).status_code == 201


def png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (600, 600), "red").save(buffer, "PNG")
    return buffer.getvalue()


def make_key(user: ApiUser) -> str:
    return str(user.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"])


def counts(database_url: str, tenant_id: str) -> dict[str, int]:
    """Table -> how many rows name the tenant, where there are any, but for what is kept."""
    found: dict[str, int] = {}
    for (table,) in rows(database_url, TABLES_WITH_TENANT):
        query = f"SELECT count(*) FROM {table} WHERE tenant_id = :tenant"  # noqa: S608 - named by the catalogue
        ((number,),) = rows(database_url, query, {"tenant": tenant_id})
        if number and table not in KEPT:
            found[table] = number
    return found


def objects(server: AppServer, tenant_id: str) -> dict[str, tuple[int, str]]:
    """Key -> size and hash."""
    store: Store = server.uvicorn.app.state.store

    async def read() -> dict[str, tuple[int, str]]:
        found = [item.key async for item in store.list(keys.tenant_prefix(tenant_id))]  # pyright: ignore[reportArgumentType]
        data = {key: await store.get(key) for key in found}
        return {key: (len(one), hashlib.sha256(one).hexdigest()) for key, one in data.items()}

    return asyncio.run(read())


def at_provider(database_url: str, tenant_id: str) -> list[str]:
    query = "SELECT provider_id FROM provider_objects WHERE tenant_id = :tenant"
    return [provider_id for (provider_id,) in rows(database_url, query, {"tenant": tenant_id})]


def deleted_responses(provider_url: str) -> set[str]:
    seen: list[Json] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    return {one["path"].rpartition("/")[2] for one in seen if one["method"] == "DELETE"}


def audited(user: ApiUser) -> list[tuple[Any, ...]]:
    entries = user.http.get("/v1/audit").json()["data"]
    return [
        (entry["actor"]["type"], entry["actor"]["email"], entry["action"], entry["target"]["id"])
        for entry in entries
        if entry["action"].startswith("erasure.") or entry["action"] == "member.removed"
    ]
