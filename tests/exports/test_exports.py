"""Exports over HTTP: what is in an archive, who may have it, and how long."""

import asyncio
import hashlib
import time
from io import BytesIO
from uuid import UUID

import httpx
import pytest
from PIL import Image

from app.exports.models import archive_key
from app.storage.store import Store
from tests import timeouts
from tests.app_server import PASSWORD, ApiUser, AppServer, one
from tests.exports.archives import export, wait_for_export
from tests.tables import every_value, rows

# File -> its table.
TABLES = {
    "conversations": "conversations",
    "messages": "messages",
    "runs": "runs",
    "attachments": "attachments",
    "members": "memberships",
    "invitations": "invitations",
    "api_keys": "api_keys",  # pragma: allowlist secret
    "usage": "usage_entries",
    "audit": "audit_entries",
}


def image(color: int = 0) -> bytes:
    buffer = BytesIO()
    Image.new("L", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def upload(user: ApiUser, color: int = 0) -> str:
    answer = user.http.post("/v1/attachments", files={"file": ("a.png", image(color))})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["object_id"])


@pytest.mark.slow
def test_a_tenants_archive_has_every_row_and_every_original(
    server: AppServer, ada: ApiUser, colleague: ApiUser, stranger: ApiUser
) -> None:
    assert server.settings.database_url
    url, tenant = server.settings.database_url.get_secret_value(), ada.signed_up["tenant"]["id"]
    ada.draw("Draw a red house")
    colleague.draw("Draw a blue house")
    upload(colleague)
    stranger.draw("Draw a green house")
    ada.invite("grace@example.com")
    ada.http.post("/v1/api-keys", json={"name": "A key"})
    done, archive = export(ada, "tenant")
    # But for what was written down about the link.
    counted = {
        name: rows(url, f"SELECT count(*) FROM {table} WHERE tenant_id = :tenant", {"tenant": tenant})[0][0]  # noqa: S608
        for name, table in TABLES.items()
    }
    counted["audit"] -= 1
    manifest = archive.manifest
    assert {name: len(archive.rows(name)) for name in TABLES} == counted
    assert manifest["counts"] == {**counted, "objects": 3}
    assert (manifest["format"], manifest["scope"]) == ("easel-export/1", "tenant")
    assert manifest["tenant"] == {"id": tenant, "name": "Ada's"}
    assert manifest["missing"] == []
    listed = {entry["path"]: entry for entry in manifest["files"]}
    assert listed.keys() == set(archive.names()) - {"manifest.json"}
    for path, entry in listed.items():
        data = archive.read(path)
        assert (entry["sha256"], entry["size_bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    stored = rows(url, "SELECT id::text, sha256 FROM attachments WHERE tenant_id = :tenant", {"tenant": tenant})
    assert {row["id"]: listed[row["path"]]["sha256"] for row in archive.rows("attachments")} == dict(stored)
    assert (done["size_bytes"], done["sha256"]) == (len(archive.data), hashlib.sha256(archive.data).hexdigest())
    assert not [word for word in ("green house", stranger.id, stranger.email) if word in archive.text()]
    assert all(word in archive.text() for word in ("red house", "blue house", "grace@example.com", colleague.email))


def test_ones_own_archive_has_ones_own_conversations_and_what_belongs_to_them(ada: ApiUser, colleague: ApiUser) -> None:
    events = colleague.draw("Draw a blue house")
    drawn, sent = one(events, "attachment.created")["attachment"]["object_id"], upload(colleague)
    key = colleague.http.post("/v1/api-keys", json={"name": "A key"}).json()
    ada.draw("Draw a red house")
    ada.invite("grace@example.com")
    _, archive = export(colleague, "me")
    run = one(events, "run.created")["run"]
    assert [row["id"] for row in archive.rows("conversations")] == [run["conversation_id"]]
    assert [row["id"] for row in archive.rows("runs")] == [run["id"]]
    assert archive.rows("messages")[0]["text"] == "Draw a blue house"
    assert {row["id"] for row in archive.rows("attachments")} == {drawn, sent}
    assert {path for path in archive.names() if path.startswith("objects/")} == {
        f"objects/{object_id}.png" for object_id in (drawn, sent)
    }
    assert [row["user_id"] for row in archive.rows("members")] == [colleague.id]
    assert [row["id"] for row in archive.rows("api_keys")] == [key["id"]]
    assert {row["run_id"] for row in archive.rows("usage")} == {run["id"]}
    assert archive.rows("invitations") == archive.rows("audit") == []
    assert not [word for word in ("red house", ada.id, ada.email, "grace@") if word in archive.text()]


@pytest.mark.slow
def test_no_secret_is_in_an_archive(own_server: AppServer, database_url: str) -> None:
    ada = own_server.sign_up()
    key = ada.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"]
    invitation = ada.invite("grace@example.com")["token"]
    ada.http.post("/v1/password-resets", json={"email": ada.email})
    ada.draw()
    _, archive = export(ada, "tenant")
    text = archive.text()
    hashes = [
        value
        for column, values in every_value(database_url).items()
        if column.endswith(("secret_hash", "password_hash"))
        for value in values
    ]
    assert len(hashes) >= 5
    assert not [value for value in hashes if value.hex() in text or value.decode("latin-1") in text]
    tokens = ada.signed_up["access_token"], ada.signed_up["refresh_token"]
    assert not [secret for secret in (key, invitation, *tokens, PASSWORD) if secret in text]
    assert "easel_" not in text


def test_an_archive_is_a_download_and_its_link_needs_no_credential(server: AppServer, ada: ApiUser) -> None:
    done, archive = export(ada, "me")
    answer = server.anyone().get(done["url"])
    assert answer.headers["content-type"] == "application/zip"
    day = done["created_at"][:10]
    assert answer.headers["content-disposition"] == f'attachment; filename="easel-me-{day}.zip"'
    assert answer.headers["content-length"] == str(done["size_bytes"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    part = server.anyone().get(done["url"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, archive.data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{done['size_bytes']}"
    assert server.anyone().head(done["url"]).headers["content-length"] == str(done["size_bytes"])


def test_a_store_without_links_sends_an_archive_in_pieces(
    own_server: AppServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, archive = export(own_server.sign_up(), "me")
    store: Store = own_server.uvicorn.app.state.store
    read, parts = store.get, list[range | None]()

    async def get(key: str, part: range | None = None) -> bytes:
        parts.append(part)
        return await read(key, part)

    monkeypatch.setattr(store, "get", get)
    monkeypatch.setattr("app.attachments.content.PIECE_BYTES", 1_000)
    assert own_server.anyone().get(done["url"]).content == archive.data
    assert len(parts) == -(-done["size_bytes"] // 1_000) > 1
    assert all(part is not None and len(part) <= 1_000 for part in parts)


def test_one_export_of_a_scope_is_open_at_a_time_and_a_new_one_replaces_the_old(
    own_server: AppServer, database_url: str
) -> None:
    ada = own_server.sign_up()
    first, _ = export(ada, "me")
    # Held by a worker that is not there, so that it stays open.
    second = ada.http.post("/v1/exports", json={"scope": "me"})
    wait_for_export(ada, second.json()["id"])
    assert ada.http.get(f"/v1/exports/{first['id']}").status_code == 404
    held = "UPDATE exports SET status = 'running', lease_until = now() + interval '1 hour' WHERE id = :id"
    rows(database_url, held, {"id": second.json()["id"]})
    again = ada.http.post("/v1/exports", json={"scope": "me"})
    assert (again.status_code, again.json()["id"]) == (202, second.json()["id"])
    assert again.headers["location"] == f"/v1/exports/{second.json()['id']}"
    assert again.json()["url"] is None
    other = ada.http.post("/v1/exports", json={"scope": "tenant"}).json()
    assert other["id"] != second.json()["id"]
    created = ada.http.get("/v1/audit", params={"action": "export.created"}).json()["data"]
    assert [entry["target"]["id"] for entry in created] == [other["id"], second.json()["id"], first["id"]]


@pytest.mark.slow
def test_members_see_their_own_exports_and_owners_those_of_the_tenant(
    server: AppServer, ada: ApiUser, stranger: ApiUser
) -> None:
    member, owner = server.sign_up_invited(ada, "member"), server.sign_up_invited(ada, "owner")
    viewer, admin = server.sign_up_invited(ada, "viewer"), server.sign_up_invited(ada, "admin")
    own, tenants = export(member, "me")[0]["id"], export(ada, "tenant")[0]["id"]
    for user in (member, admin):
        refused = user.http.post("/v1/exports", json={"scope": "tenant"})
        assert (refused.status_code, refused.json()["needs_role"]) == (403, "owner")
    for user, seen in ((member, [own]), (owner, [tenants]), (ada, [tenants]), (admin, []), (stranger, [])):
        assert [one["id"] for one in user.http.get("/v1/exports").json()["data"]] == seen
        for export_id in (own, tenants):
            expected = 200 if export_id in seen else 404
            assert user.http.get(f"/v1/exports/{export_id}").status_code == expected
    assert viewer.http.post("/v1/exports", json={"scope": "me"}).status_code == 403
    key = ada.http.post("/v1/api-keys", json={"name": "A key"}).json()["key"]
    with_key = {"Authorization": f"Bearer {key}"}
    for refused in (
        server.anyone().post("/v1/exports", json={"scope": "me"}, headers=with_key),
        server.anyone().get(f"/v1/exports/{tenants}", headers=with_key),
    ):
        assert (refused.status_code, refused.json()["code"]) == (403, "user_required")
    assert ada.http.patch(f"/v1/members/{owner.id}", json={"role": "member"}).status_code == 200
    assert owner.http.get(f"/v1/exports/{tenants}").status_code == 404
    assert ada.http.delete(f"/v1/members/{member.id}").status_code == 204
    assert member.http.get(f"/v1/exports/{own}").status_code == 403


def test_who_asked_for_an_archive_and_who_was_given_a_link_is_written_down_once(
    server: AppServer, ada: ApiUser
) -> None:
    owner = server.sign_up_invited(ada, "owner")
    done, _ = export(ada, "tenant")
    for user in (ada, owner, owner):
        assert user.http.get("/v1/exports").json()["data"][0]["url"]
        assert user.http.get(f"/v1/exports/{done['id']}").json()["url"]
    entries = ada.http.get("/v1/audit", params={"target_id": done["id"]}).json()["data"]
    assert [(entry["action"], entry["actor"]["id"], entry["changes"]) for entry in entries] == [
        ("export.downloaded", owner.id, {}),
        ("export.downloaded", ada.id, {}),
        ("export.created", ada.id, {"scope": [None, "tenant"]}),
    ]


def test_after_a_day_the_archive_is_gone_and_no_link_outlives_it(own_server: AppServer, database_url: str) -> None:
    ada = own_server.sign_up()
    done, _ = export(ada, "tenant")
    (remaining,) = rows(database_url, "SELECT expires_at - now() > interval '23 hours 59 minutes' FROM exports")
    assert remaining == (True,)
    store: Store = own_server.uvicorn.app.state.store
    archive = archive_key(UUID(ada.signed_up["tenant"]["id"]), UUID(done["id"]), 1)
    assert asyncio.run(listed(store, archive)) == [archive]
    rows(database_url, "UPDATE exports SET expires_at = now() + interval '290 seconds'")
    assert ada.http.get(f"/v1/exports/{done['id']}").json()["url"] is None
    rows(database_url, "UPDATE exports SET expires_at = now()")
    assert ada.http.get(f"/v1/exports/{done['id']}").status_code == 404
    assert ada.http.get("/v1/exports").json()["data"] == []
    deadline = time.monotonic() + timeouts.PATIENCE
    while rows(database_url, "SELECT id FROM exports") or asyncio.run(listed(store, archive)):
        assert time.monotonic() < deadline, "the archive is still there"
        time.sleep(0.1)
    assert httpx.get(done["url"]).status_code == 404


async def listed(store: Store, prefix: str) -> list[str]:
    return [item.key async for item in store.list(prefix)]
