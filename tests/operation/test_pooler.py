"""PgBouncer in transaction mode, the real one, between every process and Postgres."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import EaselError
from app.commands import backup as backup_command
from app.commands import migrate as migrate_command
from app.db import Database
from app.logins import POOLED, as_login, make_roles
from app.main import reconcile_store
from app.migrate import migrate
from app.pool import PREPARED_STATEMENTS
from app.settings import Settings
from tests.app_server import ApiUser
from tests.cluster import Cluster, running_cluster
from tests.results import Results
from tests.servers import PostgresServer, pgbouncer, postgres_server

LOGIN = "pooled"
AT_ONCE = 12
EVENT_TYPES = re.compile(r"^event: (\S+)$", re.MULTILINE).findall
SIZES = [pytest.param(200, 6), pytest.param(1000, 50, marks=[pytest.mark.prove, pytest.mark.timeout(300)])]


@pytest.fixture(scope="module")
def own_postgres() -> Generator[PostgresServer]:
    with postgres_server() as postgres:
        asyncio.run(make_roles(postgres.url, as_login(postgres.url, LOGIN)))
        asyncio.run(migrate(postgres.url))
        yield postgres


@pytest.fixture(scope="module")
def pooler_url(own_postgres: PostgresServer) -> Generator[str]:
    with pgbouncer(own_postgres, LOGIN) as address:
        yield f"postgresql://{LOGIN}@{address}/postgres"


@pytest.fixture(scope="module")
def cluster(pooler_url: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    """Two APIs and two workers, whose pools together have ten times the connections that the pooler has."""
    with running_cluster(pooler_url, provider_url, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.mark.slow
@pytest.mark.parametrize(("requests", "runs"), SIZES)
def test_a_pooler_in_between_makes_no_request_fail(
    cluster: Cluster, requests: int, runs: int, results: Results
) -> None:
    urls = [url for _, url in cluster.apis]
    ada = ApiUser(urls[0])
    statuses, ended = asyncio.run(_mixed_load(ada, urls, requests, runs))
    assert {status for status in statuses if status >= 400} == set()
    assert ended == {"run.completed": runs}
    assert [httpx.get(f"{url}/readyz").status_code for url in urls] == [200, 200]
    results(
        37,
        "PgBouncer in transaction mode",
        tried=f"{sum(statuses.values())} requests, {AT_ONCE} at once, {runs} of them runs, 2 APIs and 2 workers",
        kept=f"{sum(count for status, count in statuses.items() if status < 400)} answered, 0 x 500,"
        f" {ended['run.completed']} runs completed",
    )


async def _mixed_load(ada: ApiUser, urls: list[str], requests: int, runs: int) -> tuple[Counter[int], Counter[str]]:
    """All statuses, and how the runs ended; every third run draws, and each is followed at the other API."""
    statuses, ended = Counter[int](), Counter[str]()
    slots = asyncio.Semaphore(AT_ONCE)
    headers = {"Authorization": str(ada.http.headers["Authorization"])}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        talk = ada.start("Hello")["conversation_id"]
        kinds: list[tuple[str, str, Any]] = [
            ("GET", "/v1/me", None),
            ("GET", "/v1/conversations", None),
            ("GET", f"/v1/conversations/{talk}/messages", None),
            ("GET", "/v1/attachments?q=house", None),
            ("GET", "/v1/usage?group_by=agent", None),
            ("GET", "/v1/limits", None),
            ("GET", "/v1/members", None),
            ("POST", "/v1/api-keys", {"name": "A key"}),
            ("PATCH", f"/v1/conversations/{talk}", {"title": "A talk"}),
        ]

        async def ask(number: int) -> None:
            async with slots:
                method, path, body = kinds[number % len(kinds)]
                answer = await http.request(method, urls[number % 2] + path, json=body)
                statuses[answer.status_code] += 1

        async def run(number: int) -> None:
            draws = {"agent_key": "designer", "image": {"quality": "low"}} if number % 3 == 0 else {}
            async with slots:
                body = {"input": "Draw a house", **draws}
                answer = await http.post(f"{urls[number % 2]}/v1/runs", json=body)
                statuses[answer.status_code] += 1
            followed = await http.get(f"{urls[1 - number % 2]}/v1/runs/{answer.json()['id']}/events")
            ended[EVENT_TYPES(followed.text)[-1]] += 1

        work = [*(ask(number) for number in range(requests - runs)), *(run(number) for number in range(runs))]
        random.shuffle(work)
        await asyncio.gather(*work)
    return statuses, ended


async def test_only_a_connection_to_the_server_itself_keeps_prepared_statements(
    own_postgres: PostgresServer, pooler_url: str
) -> None:
    for url, kept in ((own_postgres.url, PREPARED_STATEMENTS), (pooler_url, 0)):
        database = Database(url, pool_size=1)
        async with database.engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).dbapi_connection
            cache = raw._prepared_statement_cache
            assert (0 if cache is None else cache.capacity) == kept
        await database.close()


async def test_a_reconcile_leaves_no_lock_behind(cluster: Cluster, pooler_url: str, tmp_path: Path) -> None:
    given = {
        "data_dir": tmp_path,
        "database_url": pooler_url,
        "storage_provider": "minio",
        "minio_endpoint": cluster.s3.endpoint,
        "minio_access_key": cluster.s3.access_key,
        "minio_secret_key": cluster.s3.secret_key,
        "minio_secure": False,
    }
    settings = Settings(_env_file=None, **given)  # pyright: ignore[reportCallIssue]
    for _ in range(4):
        await reconcile_store(settings, pooler_url, apply=False)
        assert await _advisory_locks(pooler_url) == 0


async def _advisory_locks(url: str) -> int:
    database = Database(url, pool_size=1)
    async with database.engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        count = int(found.scalar_one())
    await database.close()
    return count


COMMANDS: dict[str, Callable[[Path], None]] = {
    "migrate": lambda file: migrate_command.run(),
    "backup": lambda file: backup_command.run(file=file),
    "restore": lambda file: backup_command.run_restore(file=file),
}


@pytest.mark.usefixtures("kept_log")
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_need_the_server_itself_say_so(
    pooler_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", pooler_url)
    with pytest.raises(EaselError) as refused:
        COMMANDS[command](tmp_path / "a.dump")
    assert str(refused.value) == POOLED.format(setting="DATABASE_URL")
    assert list(tmp_path.iterdir()) == []
