"""The login that serves: what an injected statement can do with it, who makes it, who refuses one that may do more."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.commands import migrate as command
from app.connections import open_connections
from app.db import APP_ROLE, Database, uuid7
from app.embedded import running_parts
from app.logins import EMBEDDED_LOGIN, as_login, login_faults, scram_verifier
from app.settings import Settings, SettingsError
from tests.app_server import ApiUser, AppServer
from tests.tables import rows

if TYPE_CHECKING:
    from tests.conftest import Postgres

pytestmark = pytest.mark.proof(1, "database rights")

NO_ROLE = text("SELECT set_config('role', 'none', true)")
TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
PRODUCTION: dict[str, Any] = {
    "environment": "production",
    "redis_url": "memory://",
    "secret_key": "0123456789abcdef" * 4,
    "openai_api_key": "sk-test",
    "public_url": "https://api.example.com",
    "storage_provider": "minio",
    "minio_endpoint": "127.0.0.1:1",
    "minio_access_key": "x",
    "minio_secret_key": "x",
}


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[Database]:
    database = Database(url, pool_size=1)
    try:
        yield database
    finally:
        await database.close()


async def attempt(database: Database, statement: str) -> str:
    """What an injected statement ends with, in a tenant's transaction whose role another one has reset."""
    async with database.tenant(uuid7()) as session:
        await session.execute(NO_ROLE)
        try:
            result: Any = await session.execute(text(statement))
        except DBAPIError as error:
            await session.rollback()
            return str(getattr(error.orig, "sqlstate", ""))
        return f"{result.scalar()} rows" if result.returns_rows else "done"


async def test_an_injected_reset_of_the_role_ends_with_no_rights(database_url: str) -> None:
    tables = [name for (name,) in await asyncio.to_thread(rows, database_url, TABLES) if name != "alembic_version"]
    assert len(tables) > 8
    foreign = "INSERT INTO tenants (id, name, created_at) VALUES (gen_random_uuid(), 'Another', now())"
    await asyncio.to_thread(rows, database_url, foreign)
    async with opened(as_login(database_url, EMBEDDED_LOGIN)) as database, opened(database_url) as mighty:
        for table in tables:
            for statement in (
                f"SELECT count(*) FROM {table}",  # noqa: S608 - named by the catalogue
                f"DELETE FROM {table}",  # noqa: S608
                f"INSERT INTO {table} DEFAULT VALUES",
                f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
                f"DROP TABLE {table}",
            ):
                assert await attempt(database, statement) == "42501", statement
        # The same statement of a superuser's reads on.
        assert await attempt(mighty, "SELECT count(*) FROM tenants") == "1 rows"
        for statement in (
            "SET ROLE postgres",
            "SET ROLE easel_backup",
            "SET SESSION AUTHORIZATION postgres",
            "CREATE TABLE public.mine (x int)",
            "CREATE ROLE mine",
            f"ALTER ROLE {APP_ROLE} BYPASSRLS",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SELECT pg_read_file('PG_VERSION')",
        ):
            assert await attempt(database, statement) == "42501", statement


def test_the_tests_server_serves_with_that_login(server: AppServer, ada: ApiUser) -> None:
    assert server.settings.database_url
    found = rows(
        server.settings.database_url.get_secret_value(),
        "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert (EMBEDDED_LOGIN,) in found


def test_migrate_makes_the_login_once_and_with_its_password(
    new_postgres: "Postgres", monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = new_postgres.url
    serving = as_login(owner, "server").replace("//server@", "//server:a-%40-password@")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIGRATION_DATABASE_URL", owner)
    monkeypatch.setenv("DATABASE_URL", serving)
    for _ in range(2):
        command.run()
    assert capsys.readouterr().out.count("The database is at revision") == 2
    ((verifier,),) = rows(owner, "SELECT rolpassword FROM pg_authid WHERE rolname = 'server'")
    rows(owner, "ALTER ROLE server PASSWORD 'a-@-password'")
    ((of_postgres,),) = rows(owner, "SELECT rolpassword FROM pg_authid WHERE rolname = 'server'")
    for kept in (verifier, of_postgres):
        salt = base64.b64decode(kept.split("$")[1].partition(":")[2])
        assert scram_verifier("a-@-password", salt) == kept
    assert rows(
        owner,
        "SELECT roleid::regrole::text, inherit_option, set_option, admin_option FROM pg_auth_members"
        " WHERE member = 'server'::regrole ORDER BY 1",
    ) == [("easel_app", False, True, False), ("easel_identity", False, True, False)]


MIGHTY = {
    "is a superuser": "ALTER ROLE mighty SUPERUSER",
    "has BYPASSRLS": "ALTER ROLE mighty BYPASSRLS",
    "owns tables": "GRANT keeper TO mighty",
}


@pytest.fixture
def mighty_url(new_postgres: "Postgres") -> str:
    new_postgres.execute("CREATE ROLE mighty LOGIN", "CREATE ROLE keeper", "CREATE TABLE kept (x int)")
    new_postgres.execute("ALTER TABLE kept OWNER TO keeper")
    return as_login(new_postgres.url, "mighty")


@pytest.mark.parametrize("fault", MIGHTY)
async def test_production_starts_with_no_login_that_may_do_more(
    new_postgres: "Postgres", mighty_url: str, fault: str
) -> None:
    async with opened(mighty_url) as database:
        assert await login_faults(database) == ("mighty", [])
    await asyncio.to_thread(new_postgres.execute, MIGHTY[fault])
    settings = Settings(_env_file=None, **PRODUCTION, database_url=mighty_url)  # pyright: ignore[reportCallIssue]
    with pytest.raises(SettingsError, match=f"logs in as mighty, which .*{fault}.*MIGRATION_DATABASE_URL"):
        async with open_connections(settings, mighty_url):
            pass


@pytest.mark.slow
def test_the_embedded_database_serves_with_a_login_that_owns_nothing(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data_dir=tmp_path, openai_api_key="sk-test")  # pyright: ignore[reportCallIssue]
    with running_parts(settings) as parts:
        assert asyncio.run(_faults_of(parts.database_url)) == (EMBEDDED_LOGIN, [])


async def _faults_of(url: str) -> tuple[str, list[str]]:
    async with opened(url) as database:
        return await login_faults(database)
