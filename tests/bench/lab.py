"""What is measured and what that needs: `easel`, baselines, the provider and the servers, each a process of its own."""

import asyncio
import http.client
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import asyncpg
import psutil
from sqlalchemy import make_url

from app.migrate import migrate
from tests.app_server import ApiUser, starting_easel
from tests.bench.client import Target
from tests.bench.machine import cpu, on_the_first_core
from tests.servers import PostgresServer, RedisServer, S3Server, free_port, postgres_server, redis_server, s3_server

START_SECONDS = 60.0
# More than any bench has at once: what is measured is never the limit itself.
ROOMY = {"worker_concurrency": 1200, "tenant_concurrency": 1200, "database_pool_size": 20}


@dataclass(frozen=True)
class Process:
    pid: int
    base_url: str
    ready_seconds: float


@dataclass(frozen=True)
class Easel(Process):
    database_url: str
    log: Path

    def sign_up(self) -> ApiUser:
        return ApiUser(self.base_url)


def target_of(user: ApiUser, agent_key: str = "assistant") -> Target:
    return Target(user.base_url, str(user.http.headers["Authorization"]), (("agent_key", agent_key),))


class Lab:
    """Starts processes and ends them; of one kind of server there is one for all benches."""

    def __init__(self, directory: Path, postgres: PostgresServer, s3: S3Server, provider_url: str) -> None:
        self.directory = directory
        self.s3 = s3
        self.provider_url = provider_url
        self._postgres = postgres
        self._numbers = itertools.count(1)
        self._template = ""
        self.pictures: dict[str, str] = {}
        """By the name of their file in docs/."""

    @contextmanager
    def easel(self, command: Literal["serve", "worker"] = "serve", **settings: Any) -> Generator[Easel]:
        """Alone on the first core, ready; `database_url` among the settings shares another's database."""
        url = settings.pop("database_url", None) or self.new_database()
        given = {**ROOMY, **self.storage(), **settings}
        began = time.monotonic()
        with ExitStack() as stack:
            with on_the_first_core():
                starting = starting_easel(command, url, f"{self.provider_url}/v1", self.new_directory(), given)
                started = stack.enter_context(starting)
            if command == "serve":
                wait_until_ready(started.base_url, "/readyz", started.process)
            else:
                started.wait_until_ready()
            yield Easel(started.process.pid, started.base_url, time.monotonic() - began, url, started.log)

    @contextmanager
    def baseline(self, name: str) -> Generator[Process]:
        """A server of `tests.bench.baselines`, or `bare`, alone on the first core."""
        port = free_port()
        command = [f"tests.bench.{name}", str(port)] if name == "bare" else _of_baselines(name, port, self.provider_url)
        began = time.monotonic()
        with on_the_first_core(), _module(*command) as process:
            wait_until_ready(url := f"http://127.0.0.1:{port}", "/livez", process)
            yield Process(process.pid, url, time.monotonic() - began)

    def turns(self, name: str, *options: str) -> dict[str, Any]:
        """What `tests.bench.turns` says of itself."""
        place = [f"{self.provider_url}/v1", self.s3.endpoint, self.s3.access_key, self.s3.secret_key]
        command = [sys.executable, "-m", "tests.bench.turns", name, *place, *options]
        with on_the_first_core():
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-500:])
        return cast(dict[str, Any], json.loads(done.stdout))

    @contextmanager
    def redis(self) -> Generator[RedisServer]:
        with redis_server(self.new_directory()) as redis:
            yield redis

    def storage(self) -> dict[str, Any]:
        s3 = self.s3
        keys = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "secret_key": "of the bench"}
        return {"storage_provider": "minio", "minio_endpoint": s3.endpoint, "minio_secure": False, **keys}

    def postgres_cpu(self) -> float:
        """Seconds of processor time that PostgreSQL's living processes have used: connections that stay, mostly."""
        directory = sql(self._postgres.url, "SHOW data_directory")
        postmaster = int((Path(directory) / "postmaster.pid").read_text().split()[0])
        return sum(cpu(process.pid) for process in psutil.Process(postmaster).children())

    def new_directory(self) -> Path:
        return self.directory / f"d{next(self._numbers)}"

    def new_database(self) -> str:
        """A migrated database's URL."""
        if not self._template:
            self._template = self._create("easel_template", "template1")
            asyncio.run(migrate(self._template))
        return self._create(f"easel_{next(self._numbers)}", "easel_template")

    def _create(self, name: str, template: str) -> str:
        sql(self._postgres.url, f"CREATE DATABASE {name} TEMPLATE {template}")
        return make_url(self._postgres.url).set(database=name).render_as_string(hide_password=False)

    def keep_picture(self, name: str, svg: str) -> None:
        self.pictures[name] = svg

    def stop_streams(self) -> int:
        """The provider ends what it sends at a steady rate; how many bytes it was last sent."""
        return int(ask(self.provider_url, "POST", "/stop")[1])


@contextmanager
def running_lab(directory: Path) -> Generator[Lab]:
    port = free_port()
    with (
        postgres_server() as postgres,
        s3_server(directory / "s3") as s3,
        _module("tests.bench.provider", str(port)) as provider,
    ):
        wait_until_ready(url := f"http://127.0.0.1:{port}", "/", provider)
        yield Lab(directory, postgres, s3, url)


def _of_baselines(name: str, port: int, provider_url: str) -> list[str]:
    return ["tests.bench.baselines", name, str(port), provider_url]


def sql(url: str, *statements: str) -> Any:
    """The first value of the last one's answer."""

    async def execute() -> Any:
        connection = await cast(Any, asyncpg).connect(url)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(execute())


def ask(base_url: str, method: str, path: str) -> tuple[int, bytes]:
    place = urlsplit(base_url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_until_ready(base_url: str, path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if ask(base_url, "GET", path)[0] == 200:
                return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args} did not start")
        time.sleep(0.01)


@contextmanager
def _module(*command: str) -> Generator[subprocess.Popen[bytes]]:
    # A baseline that is loaded past its limit writes a traceback for each stream.
    process = subprocess.Popen([sys.executable, "-m", *command], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
