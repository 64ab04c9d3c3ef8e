"""A part that hangs keeps nobody waiting for long: every endpoint answers, and those that do without it as ever."""

import asyncio
import re
import statistics
import time
import uuid
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.migrate import migrate
from tests import timeouts
from tests.app_server import PASSWORD, ApiUser, AppServer, one, running_server
from tests.results import Results
from tests.servers import PostgresServer, Proxy, RedisServer, postgres_server, redis_server, s3_server, stopped

prove = [pytest.mark.prove, pytest.mark.timeout(300)]
PARTS = ["postgres", "redis", "storage", "provider"]
# Beside the least that a busy machine adds by itself.
SLACK_SECONDS = 0.1

Json = dict[str, Any]


@dataclass(frozen=True)
class Estate:
    """A service each of whose parts can be made to hang."""

    server: AppServer
    postgres: PostgresServer
    redis: RedisServer
    storage: Proxy
    provider: Proxy

    def hung(self, part: str) -> AbstractContextManager[None]:
        ways = {
            "postgres": self.postgres.hung,
            "redis": lambda: stopped(self.redis.process.pid),
            "storage": lambda: hanging(self.storage),
            "provider": lambda: hanging(self.provider),
        }
        return ways[part]()


@contextmanager
def hanging(proxy: Proxy) -> Generator[None]:
    proxy.mode = "hang"
    yield
    proxy.mode = "refuse"
    proxy.mode = "pass"


@pytest.fixture(scope="module")
def estate(provider_url: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Estate]:
    directory = tmp_path_factory.mktemp("estate")
    with (
        postgres_server() as postgres,
        redis_server(directory / "redis") as redis,
        s3_server(directory / "s3") as s3,
        Proxy(s3.endpoint) as storage,
        Proxy(urlsplit(provider_url).netloc) as provider,
    ):
        asyncio.run(migrate(postgres.url))
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        settings: Json = {
            "storage_provider": "minio",
            "minio_endpoint": storage.endpoint,
            **minio,
        }
        url = f"http://{provider.endpoint}/v1"
        with running_server(postgres.url, url, directory / "server", redis_url=redis.url, **settings) as server:
            yield Estate(server, postgres, redis, storage, provider)
            storage.mode = provider.mode = "refuse"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "rounds"),
    [("postgres", 1), ("redis", 1), *(pytest.param(part, 5, marks=prove) for part in PARTS)],
)
def test_every_endpoint_answers_while_a_part_hangs(estate: Estate, part: str, rounds: int, results: Results) -> None:
    ada = estate.server.sign_up("Ada's")
    image = one(ada.draw(), "attachment.created")["attachment"]
    calls = operations(ada, image)
    looks = 30 if rounds == 1 else 300
    usual = [time_one(ada, "GET", "/v1/agents", {})[0] for _ in range(looks)]
    with estate.hung(part):
        if part == "provider":
            for _ in range(5):
                ada.start("Draw a house", agent_key="designer")
        received = [ask_all(ada, calls) for _ in range(rounds)]
        during = [] if part == "postgres" else [time_one(ada, "GET", "/v1/agents", {})[0] for _ in range(looks)]
    answers = {call: answer for answered in received for call, answer in answered.items()}
    slowest = max(seconds for answered in received for seconds, _ in answered.values())
    for answered in received:
        for call, (seconds, status) in answered.items():
            assert seconds < timeouts.ANSWER, (call, seconds)
            assert status < 500 or status == 503, (call, status)
        assert answered["GET /livez"][0] < timeouts.ALIVE
    refused = sum(status == 503 for _, status in answers.values())
    if during:
        # The slowest of a few says more of the machine than of us.
        slow = statistics.median if rounds == 1 else p99
        assert slow(during) <= 2 * slow(usual) + SLACK_SECONDS
    wait_until_well(ada)
    results(
        18,
        f"{part} hangs",
        tried=f"{len(calls) * rounds} calls",
        kept=f"0 x 500, {refused} of {len(calls)} endpoints 503, slowest {slowest:.1f} s, "
        f"p99 of the others {p99(usual) * 1000:.0f} -> {p99(during or [0, 0]) * 1000:.0f} ms",
    )


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def operations(ada: ApiUser, image: Json) -> dict[str, tuple[str, str, Json]]:
    """Every operation of the API's document with a request for it: method, path, arguments of httpx."""
    ids = {
        "run_id": image["run_id"],
        "conversation_id": image["conversation_id"],
        "object_id": image["object_id"],
    }
    bytes_of_it = httpx.get(image["url"]).content
    special: dict[str, Json] = {
        "POST /v1/runs": {"json": {"input": "Hello"}},
        "POST /v1/tokens": {"json": {"email": ada.email, "password": PASSWORD}},
        "POST /v1/api-keys": {"json": {"name": "mine"}},
        "POST /v1/attachments": {"files": {"file": ("a.png", bytes_of_it, "image/png")}},
    }
    calls: dict[str, tuple[str, str, Json]] = {}
    for path, methods in ada.http.get("/openapi.json").json()["paths"].items():
        for method in methods:
            # What is deleted here must be there for the other calls.
            filled = path
            for placeholder in re.findall(r"{\w+}", path):
                here = placeholder in ids and method != "delete"
                filled = filled.replace(placeholder, ids[placeholder] if here else str(uuid.uuid4()))
            name = f"{method.upper()} {path}"
            body: Json = {} if method in ("get", "delete") else {"json": {}}
            calls[name] = (method.upper(), filled, special.get(name, body))
    # They would sign Ada out.
    for name in ("DELETE /v1/tokens/current", "DELETE /v1/tokens"):
        del calls[name]
    assert len(calls) > 20
    return calls


def ask_all(ada: ApiUser, calls: dict[str, tuple[str, str, Json]]) -> dict[str, tuple[float, int]]:
    """All at once: seconds and status of each."""
    with ThreadPoolExecutor(len(calls)) as threads:
        asked = {name: threads.submit(time_one, ada, *call) for name, call in calls.items()}
        return {name: future.result() for name, future in asked.items()}


def time_one(ada: ApiUser, method: str, path: str, more: Json) -> tuple[float, int]:
    """Until the answer's head, as streams go on."""
    began = time.monotonic()
    with ada.http.stream(method, path, **more) as answer:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
        return time.monotonic() - began, answer.status_code


def wait_until_well(ada: ApiUser) -> None:
    deadline = time.monotonic() + timeouts.ANSWER
    while ada.http.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
