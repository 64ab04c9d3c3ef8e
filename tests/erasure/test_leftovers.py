"""What goes with a conversation, deleted by its user or by the tenant's retention: objects, responses, files, rows."""

import asyncio
import json
import logging
import sys
from collections.abc import Generator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.cli import main
from app.logins import EMBEDDED_LOGIN
from app.storage.store import Store
from app.worker import housekeeping
from tests import timeouts
from tests.app_server import ApiUser, AppServer, running_server
from tests.tables import rows

KEY = {"Authorization": "Bearer sk-test"}


@pytest.fixture
def server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    """What is on its way into the store is waited for, for a lease."""
    with running_server(database_url, provider_url, tmp_path, login=EMBEDDED_LOGIN, run_lease_seconds=2) as server:
        yield server


@pytest.fixture(autouse=True)
def fresh_journal(provider_url: str) -> None:
    httpx.delete(f"{provider_url.removesuffix('/v1')}/offline/requests")


@pytest.mark.slow
def test_a_deleted_conversation_takes_what_the_provider_has_of_it(
    server: AppServer, ada: ApiUser, database_url: str, provider_url: str
) -> None:
    sent = [send(ada) for _ in range(3)]
    first = ada.ask(
        "Make one image of these [offline: max_body=40000]", agent_key="designer", attachments=[sent[0], sent[1]]
    )
    talk = first[0]["run"]["conversation_id"]
    # A call of a tool that is not there costs one more response.
    ada.ask("Hello [offline: call=frobnicate]", conversation_id=talk)
    other = ada.ask("Hello")[0]["run"]["id"]
    asked = len(requests_to(provider_url, "POST", "/v1/responses"))
    kept = provider_objects(database_url)
    responses = [provider_id for provider_id, kind, _ in kept if kind == "response"]
    files = [provider_id for provider_id, kind, _ in kept if kind == "file"]
    # The first request was too large, and is sent again with files.
    assert len(responses) == asked - 1 == 4
    assert len(files) == len(requests_to(provider_url, "POST", "/v1/files")) == 2
    assert ada.http.delete(f"/v1/conversations/{talk}").status_code == 204
    assert ada.http.get(f"/v1/conversations/{talk}").status_code == 404
    timeouts.wait_until(lambda: {run_id for *_, run_id in provider_objects(database_url)} == {other})
    (left,) = [provider_id for provider_id, *_ in provider_objects(database_url)]
    for response in responses:
        found = httpx.get(f"{provider_url}/responses/{response}", headers=KEY).status_code
        assert found == (200 if response == left else 404), response
    assert {httpx.get(f"{provider_url}/files/{file}", headers=KEY).status_code for file in files} == {404}
    assert rows(database_url, "SELECT 1 FROM object_removals") == []
    assert actions(ada)[0] == ("user", "conversation.deleted", talk)


@pytest.mark.slow
def test_a_conversation_that_is_deleted_while_it_draws_leaves_nothing(
    server: AppServer, ada: ApiUser, database_url: str, provider_url: str
) -> None:
    run = ada.start("Draw a house [offline: slow=1000]", agent_key="designer", image={"partial_images": 2})
    timeouts.wait_until(lambda: bool(provider_objects(database_url)))
    ((response, *_),) = provider_objects(database_url)
    assert ada.http.delete(f"/v1/conversations/{run['conversation_id']}").status_code == 204
    timeouts.wait_until(lambda: not provider_objects(database_url))
    assert httpx.get(f"{provider_url}/responses/{response}", headers=KEY).status_code == 404
    timeouts.wait_until(lambda: not rows(database_url, "SELECT 1 FROM object_removals"))
    timeouts.wait_until(lambda: not [path for path in stored(server) if ada.signed_up["tenant"]["id"] in path])


def test_what_nobody_has_touched_for_so_long_is_deleted_by_the_system(
    server: AppServer,
    ada: ApiUser,
    stranger: ApiUser,
    database_url: str,
    tmp_path: Path,
    kept_log: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Not by the worker, which does so once a day, and soon after its start.
    monkeypatch.setattr(housekeeping, "retain", retain_nothing)
    old, young, others = (user.ask("Hello")[0]["run"]["conversation_id"] for user in (ada, ada, stranger))
    age(database_url, old, others)
    assert ada.http.patch("/v1/tenants/current", json={"retention_days": 30}).status_code == 200
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setattr(sys, "argv", ["easel", "tenants", "retain", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)[0]["rows"] == 4
    assert ada.http.get(f"/v1/conversations/{old}").status_code == 404
    assert ada.http.get(f"/v1/conversations/{young}").status_code == 200
    assert stranger.http.get(f"/v1/conversations/{others}").status_code == 200
    assert actions(ada)[0] == ("system", "conversation.deleted", old)
    timeouts.wait_until(lambda: len(provider_objects(database_url)) == 2)


async def retain_nothing(*_: object) -> int:
    return 0


@pytest.mark.slow
def test_a_worker_applies_the_retention_by_itself(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path / "first") as server:
        ada = server.sign_up()
        old = ada.ask("Hello")[0]["run"]["conversation_id"]
        assert ada.http.patch("/v1/tenants/current", json={"retention_days": 30}).status_code == 200
        age(database_url, old)
    with running_server(database_url, provider_url, tmp_path / "second"):
        timeouts.wait_until(lambda: not rows(database_url, "SELECT 1 FROM conversations"))


def test_no_receipt_is_in_the_log(server: AppServer, ada: ApiUser, caplog: pytest.LogCaptureFixture) -> None:
    member = server.sign_up_invited(ada, "member")
    receipt = ada.http.delete(f"/v1/members/{member.id}", params={"data": "erase"}).json()["receipt"]
    with caplog.at_level(logging.DEBUG):
        assert server.anyone().get(f"/v1/erasures/{receipt}").status_code == 200
        assert server.anyone().get(f"/v1/erasures/{receipt}x").status_code == 404
    assert caplog.records
    ours = [record for record in caplog.records if record.name.startswith("app.")]
    assert ours
    assert [record for record in ours if receipt in str(vars(record))] == []


def send(user: ApiUser) -> str:
    buffer = BytesIO()
    Image.effect_noise((200, 200), 50).convert("RGB").save(buffer, "PNG")
    answer = user.http.post("/v1/attachments", files={"file": ("a.png", buffer.getvalue())})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["object_id"])


def age(database_url: str, *conversations: str) -> None:
    for conversation in conversations:
        statement = "UPDATE conversations SET updated_at = now() - interval '31 days' WHERE id = :id"
        rows(database_url, statement, {"id": conversation})


def provider_objects(database_url: str) -> list[tuple[Any, ...]]:
    return rows(database_url, "SELECT provider_id, kind, run_id::text FROM provider_objects")


def requests_to(provider_url: str, method: str, path: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json()
    return [request for request in seen if (request["method"], request["path"]) == (method, path)]


def stored(server: AppServer) -> list[str]:
    store: Store = server.uvicorn.app.state.store

    async def listed() -> list[str]:
        return [item.key async for item in store.list("t/")]

    return asyncio.run(listed())


def actions(user: ApiUser) -> list[tuple[str, str, str]]:
    entries = user.http.get("/v1/audit").json()["data"]
    return [(entry["actor"]["type"], entry["action"], entry["target"]["id"]) for entry in entries]
