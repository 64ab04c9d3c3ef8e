"""What the migrations grant is what readiness and doctor ask for: `migrations/rights.txt` cannot drift."""

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.db import Database
from app.rights import expected_rights, find_rights
from tests import timeouts
from tests.app_server import AppServer, running_server
from tests.servers import Proxy, s3_server
from tests.tables import rows

if TYPE_CHECKING:
    from tests.conftest import Postgres

# Each takes one thing away that a request needs, and a part of what `/readyz` then says.
HARM = {
    "a role that may not be entered": ("REVOKE easel_identity FROM easel_service", "cannot become the role easel_ident"),
    "a grant": ("REVOKE UPDATE ON runs FROM easel_app", "update on runs to easel_app"),
    "a column's grant": ("REVOKE UPDATE (due_at) ON object_removals FROM easel_identity", "update (due_at) on object"),
    "a policy": ("DROP POLICY tenant ON attachments", "policy tenant on attachments to easel_app"),
    "row security": ("ALTER TABLE messages NO FORCE ROW LEVEL SECURITY", "row security on messages"),
    "another's policy": ("CREATE POLICY support ON messages USING (true)", "policy support on messages"),
    "the schema of our functions": ("REVOKE USAGE ON SCHEMA app FROM easel_app", "permission denied for schema app"),
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
def storage(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Proxy, dict[str, object]]]:
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
    storage: tuple[Proxy, dict[str, object]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[AppServer]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(own_database, provider_url, folder, login="easel_service", **storage[1]) as server:
        yield server
