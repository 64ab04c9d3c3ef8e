"""Owners that people have: one who may make no roles, two on one server; and a login whose password changes."""

import asyncio
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from app.commands import migrate as command
from app.db import IDENTITY_ROLE
from app.logins import IS_PUBLIC, as_login, make_roles
from app.migrate import migrate
from app.pool import DatabaseUnreachable, connected
from app.schema import SCRIPTS, head_revision
from app.settings import SettingsError
from tests import timeouts
from tests.app_server import running_server
from tests.servers import PostgresServer, postgres_server
from tests.tables import rows
from tests.timeouts import wait_until

if TYPE_CHECKING:
    from tests.conftest import Postgres

NAMES = ("one", "two")


@pytest.fixture
def shop(new_postgres: "Postgres") -> str:
    """The URL of a database whose owner may make no roles, on a server that has never seen Easel."""
    new_postgres.execute("CREATE ROLE easel_owner LOGIN", "CREATE DATABASE shop OWNER easel_owner")
    return as_login(new_postgres.url_of("shop"), "easel_owner")


def test_an_owner_who_may_make_no_roles_migrates_after_the_dbas_file(
    new_postgres: "Postgres", shop: str, provider_url: str, tmp_path: Path
) -> None:
    serving_url = as_login(shop, "easel")
    with pytest.raises(SettingsError, match=r"logs in as easel_owner, which may not make the roles .*migrate --roles"):
        asyncio.run(make_roles(shop, serving_url))
    # As it lies in the repository, whose names are those of this test.
    rows(new_postgres.url_of("shop"), (SCRIPTS / "roles.sql").read_text())
    for _ in range(2):
        assert not asyncio.run(make_roles(shop, serving_url))
        assert asyncio.run(migrate(shop)) == head_revision()
    assert is_ready(shop, provider_url, tmp_path, "easel")


def test_the_file_is_printed_with_the_users_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], kept_log: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIGRATION_DATABASE_URL", "postgresql://o%27wner:a-secret@db.example.com/easel")
    monkeypatch.setenv("DATABASE_URL", "postgresql://server:a-secret@db.example.com/easel")
    command.run(roles=True)
    printed = capsys.readouterr().out
    assert "owner_name CONSTANT name := 'o''wner';" in printed
    assert "login_name CONSTANT name := 'server';" in printed
    assert "secret" not in printed


@pytest.mark.slow
def test_two_installs_share_a_server_and_no_row(new_postgres: "Postgres", provider_url: str, tmp_path: Path) -> None:
    urls = [make_database(new_postgres, name) for name in NAMES]
    logins = [as_login(url, f"{name}_service") for name, url in zip(NAMES, urls, strict=True)]
    # The first owner makes the roles, which the second may then not grant: a DBA does.
    assert not asyncio.run(make_roles(urls[0], logins[0]))
    with pytest.raises(SettingsError, match="what `easel migrate --roles` prints"):
        asyncio.run(make_roles(urls[1], logins[1]))
    make_roles_as_dba(new_postgres.url_of("two"), "two", "two_service")
    for name, url, login in zip(NAMES, urls, logins, strict=True):
        assert not asyncio.run(make_roles(url, login))
        asyncio.run(migrate(url))
        assert is_ready(url, provider_url, tmp_path / name, f"{name}_service")
    into_one = as_login(urls[0], "two_service")
    with pytest.raises(DatabaseUnreachable, match="permission denied for database"):
        asyncio.run(count_users(into_one))
    # What it could do there otherwise.
    new_postgres.execute("GRANT CONNECT ON DATABASE one TO PUBLIC")
    assert asyncio.run(count_users(into_one)) == 1


def make_database(postgres: "Postgres", name: str) -> str:
    postgres.execute(f"CREATE ROLE {name} LOGIN CREATEROLE", f"CREATE DATABASE {name} OWNER {name}")
    return as_login(postgres.url_of(name), name)


def make_roles_as_dba(url: str, owner: str, login: str) -> None:
    sql = (SCRIPTS / "roles.sql").read_text().replace("'easel_owner'", f"'{owner}'").replace("'easel'", f"'{login}'")
    rows(url, sql)


async def count_users(url: str) -> int:
    """As a login that is to become this role in its own database alone."""
    async with connected(url, "DATABASE_URL") as connection:
        await connection.execute(f"SET ROLE {IDENTITY_ROLE}")
        return await connection.fetchval("SELECT count(*) FROM users")


def is_ready(url: str, provider_url: str, directory: Path, login: str) -> bool:
    """Whether an install serves with its login: somebody signs up."""
    with running_server(url, provider_url, directory, login=login) as server:
        server.sign_up("Ada's")
        return httpx.get(f"{server.base_url}/readyz").status_code == 200


def test_a_database_that_everybody_may_enter_is_named(
    new_postgres: "Postgres",
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kept_log: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIGRATION_DATABASE_URL", new_postgres.url)
    monkeypatch.setenv("DATABASE_URL", as_login(new_postgres.url, "easel"))
    # What a migration job is given in production, and no more.
    monkeypatch.setenv("ENVIRONMENT", "production")
    command.run()
    printed = capsys.readouterr()
    assert printed.out == f"The database is at revision {head_revision()}.\n"
    assert printed.err.strip() == IS_PUBLIC


def test_production_migrates_no_embedded_database(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept_log: None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENVIRONMENT", "production")
    with pytest.raises(SettingsError, match="set DATABASE_URL"):
        command.run()
    assert list(tmp_path.iterdir()) == []


END_OTHERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'easel'"


@contextmanager
def asking_for_passwords() -> Generator[PostgresServer]:
    """A server whose login `easel` needs its password; the superuser needs none."""
    with postgres_server() as postgres:
        rules = postgres.sockets / "pg_hba.conf"
        rules.write_text("local all easel scram-sha-256\n" + rules.read_text())
        rows(postgres.url, "SELECT pg_reload_conf()")
        yield postgres


@pytest.mark.slow
def test_a_changed_password_is_answered_with_503_until_it_is_back(provider_url: str, tmp_path: Path) -> None:
    with asking_for_passwords() as postgres:
        serving_url = as_login(postgres.url, "easel").replace("//easel@", "//easel:before@")
        asyncio.run(make_roles(postgres.url, serving_url))
        asyncio.run(migrate(postgres.url))
        with running_server(serving_url, provider_url, tmp_path) as server:
            ada = server.sign_up("Ada's")
            rows(postgres.url, "ALTER ROLE easel PASSWORD 'after'")
            rows(postgres.url, END_OTHERS)
            refused = [ada.http.get("/v1/me"), ada.http.post("/v1/runs", json={"input": "Hello"})]
            wait_until(lambda: server.anyone().get("/readyz").status_code == 503)  # what was found holds for a second
            refused.append(server.anyone().get("/readyz"))
            assert [(one.status_code, one.headers.get("retry-after")) for one in refused] == [(503, "2")] * 3
            assert "before" not in "".join(one.text for one in refused)
            rows(postgres.url, "ALTER ROLE easel PASSWORD 'before'")
            deadline = time.monotonic() + timeouts.PATIENCE
            while ada.http.get("/v1/me").status_code != 200:
                assert time.monotonic() < deadline
            assert ada.ask("Hello")[-1]["type"] == "run.completed"
            wait_until(lambda: server.anyone().get("/readyz").status_code == 200)
