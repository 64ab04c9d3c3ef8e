"""Promise 36: `easel doctor` names each fault with its setting and its fix, and finds none where there is none."""

import asyncio
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from redis import Redis
from starlette.responses import HTMLResponse

from app.cli import main
from app.db import APP_ROLE, IDENTITY_ROLE
from app.logins import EMBEDDED_LOGIN, as_login, make_roles
from app.migrate import migrate
from tests import timeouts
from tests.app_server import running_alone
from tests.servers import PostgresServer, free_port, gcs_server, postgres_server, redis_server, s3_server
from tests.tables import rows

pytestmark = pytest.mark.proof(36, "planted faults")

POSTGRES_15 = Path("/usr/lib/postgresql/15/bin")
PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
PASSWORD = "right p@ssword"  # pragma: allowlist secret
POLICY = "CREATE POLICY tenant ON messages TO easel_app USING (tenant_id = (SELECT app.tenant()))"

Variables = dict[str, str]


@dataclass(frozen=True)
class Estate:
    """A production whose every part is there; `variables` are its settings, `owner_url` logs in as superuser."""

    variables: Variables
    postgres: PostgresServer

    @property
    def owner_url(self) -> str:
        return self.postgres.url


@pytest.fixture(scope="module")
def estate(provider_url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Estate]:
    folder = tmp_path_factory.mktemp("estate")
    with postgres_server() as postgres, redis_server(folder / "redis") as redis, s3_server(folder / "s3") as s3:
        url = as_login(postgres.url, EMBEDDED_LOGIN).replace("@", f":{quote(PASSWORD, safe='')}@", 1)
        prepare_database(postgres, url)
        client: Any = Redis
        client.from_url(redis.url).config_set("requirepass", PASSWORD)
        (folder / "s3" / "easel").mkdir()
        yield Estate(
            {
                "ENVIRONMENT": "production",
                "DATA_DIR": str(folder / "data"),
                "DATABASE_URL": url,
                "REDIS_URL": redis.url.replace("redis://", f"redis://:{quote(PASSWORD, safe='')}@"),
                "SECRET_KEY": "0123456789abcdef" * 4,
                "PUBLIC_URL": "https://api.example.com",
                "SMTP_URL": "smtp://127.0.0.1:1",
                "OPENAI_API_KEY": "sk-test",
                "OPENAI_BASE_URL": provider_url,
                "STORAGE_PROVIDER": "minio",
                "MINIO_ENDPOINT": s3.endpoint,
                "MINIO_ACCESS_KEY": s3.access_key,
                "MINIO_SECRET_KEY": s3.secret_key,
                "MINIO_SECURE": "false",
            },
            postgres,
        )


def prepare_database(postgres: PostgresServer, url: str) -> None:
    """Migrated, with a login that has to give its password."""
    asyncio.run(make_roles(postgres.url, url))
    asyncio.run(migrate(postgres.url))
    ((hba,),) = rows(postgres.url, "SHOW hba_file")
    path = Path(hba)
    path.write_text(f"local all {EMBEDDED_LOGIN} scram-sha-256\n{path.read_text()}")
    rows(postgres.url, "SELECT pg_reload_conf()")


@pytest.fixture
def doctor(
    estate: Estate, kept_log: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """The command with some settings changed: its exit code, and all that it says."""

    def run(**changed: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["easel", "doctor"])
        for name, value in {**estate.variables, **changed}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        if isinstance(left.value.code, str):  # which the interpreter writes to standard error
            return 1, left.value.code
        return left.value.code or 0, said.out

    return run


def test_a_healthy_system_has_no_fault_and_no_warning(doctor: Callable[..., tuple[int, str]]) -> None:
    code, said = doctor()
    assert (code, "All parts answer." in said, "warning" in said) == (0, True, False), said


def test_a_pooler_of_transactions_is_no_fault(estate: Estate, doctor: Callable[..., tuple[int, str]]) -> None:
    with pooler(estate, "transaction") as variables:
        code, said = doctor(**variables)
    assert (code, "All parts answer." in said) == (0, True), said


def test_a_page_in_place_of_the_api_is_named(doctor: Callable[..., tuple[int, str]]) -> None:
    async def show_page(scope: Any, receive: Any, send: Any) -> None:
        await HTMLResponse("<h1>It works!</h1>")(scope, receive, send)

    with running_alone(show_page) as port:
        code, said = doctor(OPENAI_BASE_URL=f"http://127.0.0.1:{port}")
    assert (code, "sends a page of HTML: correct OPENAI_BASE_URL" in said) == (1, True), said


@contextmanager
def role_renamed(estate: Estate) -> Generator[Variables]:
    rows(estate.owner_url, f"ALTER ROLE {IDENTITY_ROLE} RENAME TO gone")
    yield {}
    rows(estate.owner_url, f"ALTER ROLE gone RENAME TO {IDENTITY_ROLE}")


@contextmanager
def grant_taken(estate: Estate) -> Generator[Variables]:
    rows(estate.owner_url, f"REVOKE INSERT ON messages FROM {APP_ROLE}")
    yield {}
    rows(estate.owner_url, f"GRANT INSERT ON messages TO {APP_ROLE}")


@contextmanager
def policy_dropped(estate: Estate) -> Generator[Variables]:
    rows(estate.owner_url, "DROP POLICY tenant ON messages")
    yield {}
    rows(estate.owner_url, POLICY)


@contextmanager
def policy_added(estate: Estate) -> Generator[Variables]:
    rows(estate.owner_url, "CREATE POLICY support ON messages USING (true)")
    yield {}
    rows(estate.owner_url, "DROP POLICY support ON messages")


@contextmanager
def postgres_15(estate: Estate) -> Generator[Variables]:
    if not POSTGRES_15.is_dir():
        pytest.skip("There is no PostgreSQL 15 here: Debian 12 has it (apt install postgresql-15).")
    with folder_of(user := estate.postgres.system_user) as folder:
        data, options = f"{folder}/data", f"-c listen_addresses='' -k {folder}"
        control = [POSTGRES_15 / "pg_ctl", "-D", data, "-w", "-m", "immediate", "-l", f"{folder}/log"]
        quietly(POSTGRES_15 / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", user=user)
        quietly(*control, "-o", options, "start", user=user)
        try:
            yield {"DATABASE_URL": f"postgresql://postgres@/postgres?host={folder}"}
        finally:
            quietly(*control, "stop", user=user)


@contextmanager
def pooler(estate: Estate, mode: str = "statement") -> Generator[Variables]:
    """PgBouncer; one that gives each statement another session leaves no transaction whole."""
    if PGBOUNCER is None:
        pytest.skip("There is no PgBouncer here (Debian, Ubuntu: apt install pgbouncer).")
    port = free_port()
    socket_folder = estate.owner_url.partition("host=")[2]
    with folder_of(user := estate.postgres.system_user) as folder:
        (Path(folder) / "users").write_text(f'"{EMBEDDED_LOGIN}" "{PASSWORD}"\n')
        (Path(folder) / "ini").write_text(
            f"[databases]\n* = host={socket_folder}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
            f"unix_socket_dir =\nauth_type = trust\nauth_file = {folder}/users\npool_mode = {mode}\n"
        )
        process = subprocess.Popen([PGBOUNCER, "-q", f"{folder}/ini"], user=user, stderr=subprocess.DEVNULL)
        try:
            timeouts.wait_until(lambda: listens(port))
            yield {"DATABASE_URL": f"postgresql://{EMBEDDED_LOGIN}@127.0.0.1:{port}/postgres"}
        finally:
            process.terminate()
            process.wait(timeouts.STOP)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def folder_of(user: str | None) -> Generator[str]:
    """For a server that must not be root's."""
    with tempfile.TemporaryDirectory(prefix="easel-doctor-") as folder:
        if user is not None:
            shutil.chown(folder, user)
        yield folder


def quietly(*command: str | Path, user: str | None) -> None:
    subprocess.run(command, check=True, capture_output=True, user=user, cwd="/", timeout=60)


def changed(**variables: str) -> Callable[[Estate], AbstractContextManager[Mapping[str, str]]]:
    return lambda estate: nullcontext(variables)


def in_url(name: str, old: str, new: str) -> Callable[[Estate], AbstractContextManager[Mapping[str, str]]]:
    return lambda estate: nullcontext({name: estate.variables[name].replace(old, new, 1)})


ENCODED = quote(PASSWORD, safe="")
FAULTS: dict[str, tuple[Callable[[Estate], AbstractContextManager[Mapping[str, str]]], str]] = {
    "dead address": (
        changed(DATABASE_URL="postgresql://easel_service@127.0.0.1:1/easel"),
        r"PostgreSQL at 127\.0\.0\.1:1 does not answer .*: start it, or correct host and port in DATABASE_URL",
    ),
    "wrong password": (
        in_url("DATABASE_URL", ENCODED, "wrong"),
        r"refuses the user easel_service: correct user and password in DATABASE_URL",
    ),
    "missing database": (
        in_url("DATABASE_URL", "/postgres?", "/nowhere?"),
        r"has no database nowhere: create it \(createdb nowhere\), or correct DATABASE_URL",
    ),
    "PostgreSQL 15": (
        postgres_15,
        r"PostgreSQL 15\.\d+ is too old: Easel needs 16 or newer; upgrade it, or .* DATABASE_URL",
    ),
    "missing role": (role_renamed, r"DATABASE_URL cannot become the role easel_identity .*: run `easel migrate`"),
    "missing grant": (grant_taken, r"lacks what its migrations gave \(insert on messages to easel_app\): restore it"),
    "missing policy": (policy_dropped, r"lacks what its migrations gave \(policy tenant on messages to easel_app\)"),
    "a policy too many": (policy_added, r"no migration made \(policy support on messages to easel_app.*DROP POLICY"),
    "unsupported pooler": (pooler, r"is a pooler that .*: let it pool sessions, or name the server itself in DATABASE"),
    "Redis away": (
        changed(REDIS_URL="redis://127.0.0.1:1/0"),
        r"Redis at 127\.0\.0\.1:1 does not answer \(Connection refused\): start it, or correct .* REDIS_URL",
    ),
    "Redis password": (in_url("REDIS_URL", ENCODED, "wrong"), r"refuses the credentials: correct .* in REDIS_URL"),
    "no Redis password": (in_url("REDIS_URL", f":{ENCODED}@", ""), r"refuses the credentials: correct .* REDIS_URL"),
    "S3 key": (changed(MINIO_SECRET_KEY="wrong-secret"), r"refused to .*: check MINIO_ACCESS_KEY, MINIO_SECRET_KEY"),
    "S3 bucket": (
        changed(STORAGE_BUCKET="nowhere"),
        r"The bucket 'nowhere' does not exist at .*: create it, or correct STORAGE_BUCKET",
    ),
    "S3 away": (changed(MINIO_ENDPOINT="127.0.0.1:1"), r"127\.0\.0\.1:1 cannot be reached: start it, or .* MINIO_ENDP"),
    "provider away": (
        changed(OPENAI_BASE_URL="http://127.0.0.1:1/v1"),
        r"provider at 127\.0\.0\.1:1 does not answer \(Connection refused\): .* correct OPENAI_BASE_URL",
    ),
    "provider 401": (changed(OPENAI_API_KEY="sk-bad"), r"refuses the key \(HTTP 401\): correct OPENAI_API_KEY"),
    "unknown model": (
        changed(AGENT_DEFAULT_MODEL="no-such-model"),
        r"has no model no-such-model: name one that it has in AGENT_DEFAULT_MODEL",
    ),
    "unknown image model": (changed(IMAGE_MODEL="no-such-model"), r"has no model no-such-model: .* in IMAGE_MODEL"),
    "not the API": (in_url("OPENAI_BASE_URL", "/v1", "/v2"), r"knows no /models: correct OPENAI_BASE_URL, .* /v1"),
    "short secret": (changed(SECRET_KEY="short"), r"set SECRET_KEY \(each of its keys 32 random bytes or more"),
    "no https": (changed(PUBLIC_URL="http://api.example.com"), r"PUBLIC_URL=http://api.example.com is no https origin"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_only_one_and_is_named(
    fault: str, estate: Estate, doctor: Callable[..., tuple[int, str]]
) -> None:
    plant, sentence = FAULTS[fault]
    with plant(estate) as variables:
        code, said = doctor(**variables)
    (line,) = said.splitlines()
    assert code == 1
    assert re.search(sentence, line), said
    assert not any(secret in said for secret in (PASSWORD, ENCODED, "wrong-secret", "sk-bad"))


@pytest.mark.slow
def test_migrate_refuses_a_server_that_is_too_old(
    estate: Estate, kept_log: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["easel", "migrate"])
    with postgres_15(estate) as variables:
        monkeypatch.setenv("DATABASE_URL", variables["DATABASE_URL"])
        with pytest.raises(SystemExit, match=r"PostgreSQL 15\.\d+ is too old"):
            main()


def test_all_faults_are_listed_at_once(doctor: Callable[..., tuple[int, str]]) -> None:
    code, said = doctor(
        DATABASE_URL="postgresql://x@127.0.0.1:1/x",
        REDIS_URL="redis://127.0.0.1:1/0",
        STORAGE_BUCKET="nowhere",
        OPENAI_API_KEY="sk-bad",
    )
    assert code == 1
    assert [
        name for name in ("DATABASE_URL", "REDIS_URL", "STORAGE_BUCKET", "OPENAI_API_KEY") if name not in said
    ] == []


def test_nothing_is_left_of_what_doctor_writes(estate: Estate, doctor: Callable[..., tuple[int, str]]) -> None:
    doctor()
    bucket = Path(estate.variables["DATA_DIR"]).parent / "s3" / "easel"
    assert [path for path in bucket.rglob("*") if path.is_file()] == []


def test_google_s_storage_is_tried_as_well(doctor: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    with gcs_server(tmp_path / "gcs") as gcs:
        settings = {"STORAGE_PROVIDER": "gcs", "STORAGE_EMULATOR_HOST": gcs.url, "GCS_BUCKET": "nowhere"}
        code, said = doctor(**settings)
    assert code == 1
    assert "The bucket 'nowhere' does not exist" in said
    assert "GCS_BUCKET" in said
