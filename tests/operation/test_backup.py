"""Promise 35: a lost server. Rows by `easel backup`, objects by a copy, and all of it back on a server that is new."""

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from app.backup import BackupError, back_up, restore
from app.logins import as_login, make_roles, roles_sql
from app.migrate import migrate
from app.pg_tools import ToolError, find_tool
from tests import timeouts
from tests.app_server import AppServer, kinds, running_server
from tests.made_streams import png
from tests.results import Results
from tests.servers import S3Server, s3_server
from tests.tables import rows

if TYPE_CHECKING:
    from tests.conftest import Postgres

pytestmark = pytest.mark.proof(35, "backups")

BIN = Path(sys.executable).parent
BOOK = Path(__file__).resolve().parents[2] / "docs" / "operate.md"
SERVER = 18
IMAGES, DRAWN = 20, 2
SERVING = "kept_service"
OURS = """
SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE nspname IN ('public', 'app') AND relkind = 'r' ORDER BY 1
"""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'"
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump'"


@dataclass(frozen=True)
class Install:
    """A database and its owner, who is no superuser; `url` is the superuser's."""

    url: str
    owner_url: str

    def counts(self) -> dict[str, int]:
        names = [name for (name,) in rows(self.url, OURS)]
        return {name: rows(self.url, f"SELECT count(*) FROM {name}")[0][0] for name in names}  # noqa: S608


@pytest.fixture(scope="module")
def install(postgres: "Postgres", migrated_template: str) -> Generator[Install]:
    """On a server that knows Easel: its owner may make no roles, so a DBA has made them."""
    postgres.execute("CREATE ROLE keeper LOGIN", "CREATE DATABASE kept OWNER keeper")
    owner_url = as_login(postgres.url_of("kept"), "keeper")
    rows(postgres.url_of("kept"), roles_sql(owner_url, as_login(owner_url, SERVING)))
    asyncio.run(migrate(owner_url))
    yield Install(postgres.url_of("kept"), owner_url)
    postgres.execute("DROP DATABASE kept WITH (FORCE)", f"DROP ROLE {SERVING}", "DROP ROLE keeper")


@pytest.mark.slow
def test_a_lost_server_comes_back_with_every_row_and_image(
    install: Install, new_postgres: "Postgres", provider_url: str, tmp_path: Path, results: Results
) -> None:
    with serving(install, provider_url, tmp_path / "before") as server:
        ada = server.sign_up("Ada's")
        for _ in range(DRAWN):
            assert kinds(ada.draw())[-1] == "run.completed"
        for number in range(IMAGES - DRAWN):
            upload = {"file": (f"{number}.png", png("red", (64, 64 + number)), "image/png")}
            assert ada.http.post("/v1/attachments", files=upload).status_code == 201
        images = hashes(ada.http)
    counts = install.counts()
    assert len(images) == IMAGES
    run_block("Backup", tmp_path, install.owner_url)

    shutil.copytree(tmp_path / "before" / "s3", tmp_path / "after" / "s3")
    new_postgres.execute("CREATE ROLE heir LOGIN CREATEROLE", "CREATE DATABASE restored OWNER heir")
    url = new_postgres.url_of("restored")
    restored = Install(url, as_login(url, "heir"))
    run_block("Restore", tmp_path, restored.owner_url)
    assert restored.counts() == counts
    # As `easel migrate` does with the two URLs.
    asyncio.run(make_roles(restored.owner_url, as_login(url, SERVING)))
    with serving(restored, provider_url, tmp_path / "after") as server:
        assert httpx.get(f"{server.base_url}/readyz").status_code == 200
        with ada.at(server.base_url) as http:
            assert hashes(http) == images
            run = {"input": "Draw a house", "agent_key": "designer", "image": {"quality": "low"}}
            answer = http.post("/v1/runs", json=run, headers={"Accept": "text/event-stream"})
            assert "event: run.completed" in answer.text
    results(
        35,
        "a lost server",
        tried=f"{sum(counts.values())} rows in {len(counts)} tables, {IMAGES} images, another owner, a new server",
        kept=f"{sum(counts.values())} rows in {len(counts)} tables, {IMAGES} images with the same hash, service ready",
    )


@contextmanager
def serving(install: Install, provider_url: str, directory: Path) -> Generator[AppServer]:
    with s3_server(directory / "s3") as s3:
        settings = storage(s3)
        with running_server(install.url, provider_url, directory / "data", login=SERVING, **settings) as server:
            yield server


def storage(s3: S3Server) -> dict[str, Any]:
    keys = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
    return {"storage_provider": "minio", "minio_endpoint": s3.endpoint, **keys}


def hashes(http: httpx.Client) -> dict[str, str]:
    """Of each image, as its user gets it."""
    listed = http.get("/v1/attachments", params={"limit": 100}).json()["data"]
    found: dict[str, str] = {}
    for image in listed:
        content = http.get(f"/v1/attachments/{image['object_id']}/content", follow_redirects=True)
        assert content.status_code == 200
        found[image["object_id"]] = hashlib.sha256(content.content).hexdigest()
    return found


def run_block(section: str, directory: Path, database_url: str) -> None:
    """The first block of commands of the operator's book's section, as it is written there."""
    text = BOOK.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    block = re.search(r"^```sh\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    done = subprocess.run(
        ["bash", "-euc", block[1]],
        env=environment(DATABASE_URL=database_url),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def environment(**variables: str) -> dict[str, str]:
    return {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1", **variables}


@pytest.mark.slow
def test_a_backup_that_ends_early_fails_and_leaves_no_file(install: Install, tmp_path: Path) -> None:
    with locked(install, "alembic_version"):
        backups = [start_backup(install, tmp_path / name) for name in ("dump killed", "terminated", "killed", "cut")]
        wait_for(install, WAITING, len(backups))
        dump_killed, terminated, killed, _ = backups
        (dump,) = psutil.Process(dump_killed.pid).children()
        dump.kill()
        terminated.terminate()
        killed.kill()
        for process in (dump_killed, terminated, killed):
            process.wait(timeouts.PROCESS_START)
        rows(install.url, CUT)
        reasons = [process.communicate(timeout=timeouts.PROCESS_START)[1] for process in backups]
    assert all(process.returncode for process in backups), reasons
    assert "No backup was written: pg_dump ended with status -9." in reasons[0]
    assert "No backup was written: pg_dump: error:" in reasons[3]
    # Nobody is left to remove that of the one that was killed.
    assert [path.name for path in tmp_path.iterdir()] == [f".killed.{killed.pid}.partial"]


def test_a_backup_onto_a_full_disk_fails_and_leaves_no_file(install: Install, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", "ulimit -f 16; exec easel backup a.dump"],
        env=environment(DATABASE_URL=install.owner_url),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode != 0
    assert "No backup was written: pg_dump" in done.stderr
    assert list(tmp_path.iterdir()) == []


def start_backup(install: Install, file: Path) -> subprocess.Popen[str]:
    command = [str(BIN / "easel"), "backup", str(file)]
    given = environment(DATABASE_URL=install.owner_url)
    return subprocess.Popen(
        command, env=given, cwd=file.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextmanager
def locked(install: Install, table: str) -> Generator[None]:
    """Whoever reads the table waits until the end."""
    psql = subprocess.Popen([find_tool("psql", SERVER), "-q", install.url], stdin=subprocess.PIPE, text=True)
    assert psql.stdin is not None
    psql.stdin.write(f"BEGIN; LOCK TABLE {table};\n")
    psql.stdin.flush()
    try:
        wait_for(install, "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted", 1)
        yield
    finally:
        psql.communicate(timeout=timeouts.STOP)


def wait_for(install: Install, statement: str, count: int) -> None:
    deadline = time.monotonic() + timeouts.PROCESS_START
    while rows(install.url, statement)[0][0] < count:
        assert time.monotonic() < deadline, statement
        time.sleep(0.1)


UNREADABLE = {
    "a table without a policy": ("DROP POLICY backup ON messages", "public.messages"),
    "a policy that hides rows": ("ALTER POLICY backup ON runs USING (created_at > now())", "public.runs"),
    "a policy that takes rows away": (
        "CREATE POLICY fewer ON tenants AS RESTRICTIVE FOR SELECT USING (suspended_at IS NULL)",
        "public.tenants",
    ),
    "a table without a grant": ("REVOKE SELECT ON users FROM easel_backup", "public.users"),
    "a new table": ("CREATE TABLE app.forgotten (x int)", "app.forgotten"),
    "a new sequence": ("CREATE SEQUENCE numbers", "public.numbers"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_what_a_backup_would_leave_out_is_named(database_url: str, tmp_path: Path, fault: str) -> None:
    statement, name = UNREADABLE[fault]
    rows(database_url, statement)
    with pytest.raises(BackupError, match=rf"may not read all of {re.escape(name)}\."):
        back_up(database_url, "DATABASE_URL", tmp_path / "a.dump")
    assert list(tmp_path.iterdir()) == []


def test_a_dump_that_lacks_rows_is_no_backup(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap_pg_dump(tmp_path / "bin", monkeypatch, 'exec "$real" "$@" --exclude-table-data=public.plans')
    with pytest.raises(BackupError, match=r"it would lack rows \(public\.plans: 0 of 2\)"):
        back_up(database_url, "DATABASE_URL", tmp_path / "a.dump")
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_the_password_is_in_no_argument(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen"
    wrap_pg_dump(tmp_path / "bin", monkeypatch, f'echo "$PGPASSWORD $@" >> {seen}; exec "$real" "$@"')
    back_up(database_url.replace("postgres:@", "postgres:a%20secret@"), "DATABASE_URL", tmp_path / "a.dump")
    password, _, arguments = seen.read_text().partition(" --")
    assert password == "a secret"
    assert "secret" not in arguments
    assert (tmp_path / "a.dump").stat().st_mode & 0o777 == 0o600


def wrap_pg_dump(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Puts a script before the real program, which it knows as `$real`."""
    directory.mkdir()
    script = directory / "pg_dump"
    asks_version = '[ "$1" = --version ] && exec "$real" --version'
    script.write_text(f"#!/bin/sh\nreal={find_tool('pg_dump', SERVER)}\n{asks_version}\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_no_backup_is_overwritten(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.dump").write_text("yesterday's")
    with pytest.raises(BackupError, match="is there already"):
        back_up(database_url, "DATABASE_URL", tmp_path / "a.dump")
    assert (tmp_path / "a.dump").read_text() == "yesterday's"


def test_who_owns_nothing_reads_how_to_back_up(database_url: str, tmp_path: Path) -> None:
    rows(database_url, "CREATE ROLE nobody_special LOGIN")
    try:
        url = as_login(database_url, "nobody_special")
        with pytest.raises(BackupError, match=r"user of DATABASE_URL may not become easel_backup.*MIGRATION_DATABASE"):
            back_up(url, "DATABASE_URL", tmp_path / "a.dump")
    finally:
        rows(database_url, "DROP ROLE nobody_special")


def test_a_file_that_was_cut_off_restores_nothing(database_url: str, empty_database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "a.dump"
    back_up(database_url, "DATABASE_URL", file)
    whole = file.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 200):
        file.write_bytes(whole[:size])
        with pytest.raises(BackupError, match="Nothing was restored from"):
            restore(empty_database_url, empty_database_url, "DATABASE_URL", file)
        assert rows(empty_database_url, OURS) == []


def test_a_restore_that_fails_on_its_way_leaves_nothing(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    rows(database_url, "CREATE ROLE gone NOLOGIN")
    rows(database_url, "GRANT SELECT ON plans TO gone")
    back_up(database_url, "DATABASE_URL", tmp_path / "a.dump")
    rows(database_url, "REVOKE SELECT ON plans FROM gone")
    rows(database_url, "DROP ROLE gone")
    with pytest.raises(BackupError, match='role "gone" does not exist'):
        restore(empty_database_url, empty_database_url, "DATABASE_URL", tmp_path / "a.dump")
    assert rows(empty_database_url, OURS) == []


def test_only_an_empty_database_is_restored_into(database_url: str, tmp_path: Path) -> None:
    back_up(database_url, "DATABASE_URL", tmp_path / "a.dump")
    with pytest.raises(BackupError, match=r"is not empty \(it has public\.alembic_version\)"):
        restore(database_url, database_url, "DATABASE_URL", tmp_path / "a.dump")


def test_postgres_own_programs_do_the_same_by_hand(
    database_url: str, empty_database_url: str, tmp_path: Path, new_postgres: "Postgres"
) -> None:
    """As the operator's book writes it, onto a server whose roles come from the DBA's file."""
    file = tmp_path / "a.dump"
    dump = ["--format=custom", "--role=easel_backup", "--enable-row-security", f"--file={file}", database_url]
    subprocess.run([find_tool("pg_dump", SERVER), *dump], check=True, timeout=60)
    rows(new_postgres.url, roles_sql(new_postgres.url, new_postgres.url))
    back = ["--no-owner", "--exit-on-error", "--single-transaction", f"--dbname={new_postgres.url}", str(file)]
    subprocess.run([find_tool("pg_restore", SERVER), *back], check=True, timeout=60)
    assert rows(new_postgres.url, "SELECT name FROM plans ORDER BY 1") == [("trial",), ("unlimited",)]


def test_programs_that_do_not_fit_the_server_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError, match=r"PostgreSQL 99, and there is no pg_dump .*apt install postgresql-client-99"):
        find_tool("pg_dump", 99)
    # pg_restore 17 and newer set a parameter that PostgreSQL 16 refuses.
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolError, match="PostgreSQL 16, and there is no pg_restore for it"):
        find_tool("pg_restore", 16)
