"""What the migrations grant is what readiness and doctor ask for: `migrations/rights.txt` cannot drift."""

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import pytest

from app.db import Database
from app.readiness import FRESH_SECONDS, Readiness
from app.rights import expected_rights, find_rights
from tests import timeouts
from tests.app_server import AppServer, running_server
from tests.servers import Proxy, s3_server
from tests.tables import rows

if TYPE_CHECKING:
    from tests.conftest import Postgres

# Each takes one thing away that a request needs: the statement, what undoes it, a part of what `/readyz` says.
OF_TENANT = "(tenant_id = (SELECT app.tenant()))"
HARM = {
    "a role that may not be entered": (
        "REVOKE easel_identity FROM easel_service",
        "GRANT easel_identity TO easel_service WITH SET TRUE, INHERIT FALSE",
        "cannot become the role easel_identity",
    ),
    "a grant": (
        "REVOKE UPDATE ON runs FROM easel_app",
        "GRANT UPDATE ON runs TO easel_app",
        "update on runs to easel_app",
    ),
    "a column's grant": (
        "REVOKE UPDATE (due_at) ON object_removals FROM easel_identity",
        "GRANT UPDATE (due_at) ON object_removals TO easel_identity",
        "update (due_at) on object_removals to easel_identity",
    ),
    "a policy": (
        "DROP POLICY tenant ON attachments",
        f"CREATE POLICY tenant ON attachments TO easel_app USING {OF_TENANT} WITH CHECK {OF_TENANT}",
        "policy tenant on attachments to easel_app",
    ),
    "row security": (
        "ALTER TABLE messages NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE messages FORCE ROW LEVEL SECURITY",
        "row security on messages",
    ),
    "another's policy": (
        "CREATE POLICY support ON messages USING (true)",
        "DROP POLICY support ON messages",
        "policy support on messages to easel_app",
    ),
    "the schema of our functions": (
        "REVOKE USAGE ON SCHEMA app FROM easel_app",
        "GRANT USAGE ON SCHEMA app TO easel_app",
        "permission denied for schema app",
    ),
}


async def test_the_manifest_is_what_the_migrations_grant(database_url: str) -> None:
    database = Database(database_url, pool_size=1)
    async with database.probe.connect() as connection:
        found = await find_rights(connection)
    await database.close()
    assert found == list(expected_rights()), "run ./just rights"
    assert sum(right.startswith("policy ") for right in found) > 40


@pytest.fixture(scope="module")
def own_database(postgres: "Postgres", migrated_template: str) -> Generator[str]:
    with postgres.database(migrated_template) as url:
        yield url


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Proxy, dict[str, Any]]]:
    with s3_server(tmp_path_factory.mktemp("s3")) as s3, Proxy(s3.endpoint) as proxy:
        yield (
            proxy,
            {
                "storage_provider": "minio",
                "minio_endpoint": proxy.endpoint,
                "minio_access_key": s3.access_key,
                "minio_secret_key": s3.secret_key,
                "minio_secure": False,
            },
        )
        proxy.mode = "refuse"


@pytest.fixture(scope="module")
def server(
    own_database: str,
    provider_url: str,
    storage: tuple[Proxy, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[AppServer]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(own_database, provider_url, folder, login="easel_service", **storage[1]) as server:
        yield server


@pytest.fixture
def unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every probe looks anew."""
    monkeypatch.setattr("app.readiness.FRESH_SECONDS", 0)
    monkeypatch.setattr("app.readiness.STORAGE_FRESH_SECONDS", 0)


@pytest.mark.parametrize("harm", HARM)
def test_readyz_refuses_while_a_request_would_fail(
    harm: str, server: AppServer, own_database: str, unkept: None
) -> None:
    statement, undo, said = HARM[harm]
    rows(own_database, statement)
    try:
        answer = server.anyone().get("/readyz")
    finally:
        rows(own_database, undo)
    assert (answer.status_code, said in answer.json()["detail"]) == (503, True), answer.text
    assert answer.headers["retry-after"]
    assert server.anyone().get("/readyz").json() == {"status": "ready", "storage": "ok"}


@pytest.mark.parametrize("mode", ["refuse", "hang"])
def test_readyz_reports_a_storage_that_fails_and_serves_on(
    mode: Literal["refuse", "hang"], server: AppServer, storage: tuple[Proxy, Any], unkept: None
) -> None:
    storage[0].mode = mode
    began = time.monotonic()
    answer = server.anyone().get("/readyz")
    took = time.monotonic() - began
    storage[0].mode = "refuse"
    storage[0].mode = "pass"
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "storage": "failing"})
    assert took < timeouts.RECOVERY
    timeouts.wait_until(lambda: server.anyone().get("/readyz").json()["storage"] == "ok")


def test_a_flood_of_probes_costs_one_look_a_second(server: AppServer, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look = Readiness._check  # pyright: ignore[reportPrivateUsage]

    async def counted(self: Readiness) -> None:
        looks.append(time.monotonic())
        await look(self)

    monkeypatch.setattr(Readiness, "_check", counted)
    client = server.anyone()
    began = time.monotonic()
    with ThreadPoolExecutor(20) as threads:
        codes = [answer.status_code for answer in threads.map(client.get, ["/readyz"] * 200)]
    took = time.monotonic() - began
    assert codes == [200] * 200
    assert len(looks) <= 1 + took / FRESH_SECONDS
