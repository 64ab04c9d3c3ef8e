"""What needs no plan is limited all the same: requests of strangers, open streams, waiting runs, uploads."""

import io
import json
import re
import socket
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import httpx
import pytest
from PIL import Image
from redis.asyncio import Redis

from app.db import uuid7
from app.errors import FloorName, LimitScope
from app.identity import credentials
from app.limits import InFlightLimit, Limits
from app.token_bucket import MemoryTokenBuckets, RedisTokenBuckets, TokenBuckets
from tests import timeouts
from tests.app_server import ApiUser, AppServer, events_of, kinds, running_server
from tests.replies import DOCUMENT
from tests.servers import REDIS_SERVERS, redis_server
from tests.tables import rows

pytestmark = pytest.mark.proof(33, "limits")

SIGN_IN = {"email": "ada@example.com", "password": "not the password"}
STALL = {"text": "Draw a house [offline: stall]", "agent_key": "designer"}
MEGABYTE = 1024**2
STALLED_RUN = {"input": STALL["text"], "agent_key": "designer"}


@pytest.fixture
def limited(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with running_server(
        database_url,
        provider_url,
        tmp_path,
        tenant_concurrency=1,
        worker_concurrency=2,
        tenant_queued_runs=4,
        conversation_queued_runs=2,
        user_streams=3,
        tenant_uploads=2,
        tenant_uploads_mb=1,
        anonymous_requests_per_minute=40,
    ) as server:
        yield server


@pytest.fixture
def server(limited: AppServer) -> AppServer:
    return limited


@pytest.mark.slow
def test_each_refusal_names_what_is_limited_for_whom_and_when_to_come_again(server: AppServer) -> None:
    assert REFUSALS.keys() == set(get_args(FloorName))
    for limit, (scope, allowed, reach) in REFUSALS.items():
        user = server.sign_up()
        with ExitStack() as held:
            refused = reach(server, user, held)
            assert_refused(refused, limit, scope, allowed)
            assert refused.headers["Content-Type"] == "application/problem+json"
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            assert len(refused.json()["detail"]) > 40


def reach_streams(server: AppServer, user: ApiUser, held: ExitStack) -> httpx.Response:
    path = f"/v1/runs/{stalled(user, held)['id']}/events"
    for _ in range(3):
        held.enter_context(open_stream(user, path))
    return user.http.get(path)


def reach_waiting_runs(server: AppServer, user: ApiUser, held: ExitStack) -> httpx.Response:
    first = stalled(user, held)
    until(lambda: status_of(user, first) == "running")
    for _ in range(4):
        stalled(user, held)
    return user.http.post("/v1/runs", json=STALLED_RUN)


def reach_waiting_runs_of_a_conversation(server: AppServer, user: ApiUser, held: ExitStack) -> httpx.Response:
    first = stalled(user, held)
    until(lambda: status_of(user, first) == "running")
    more = {"conversation_id": first["conversation_id"], "if_busy": "queue"}
    for _ in range(2):
        stalled(user, held, **more)
    return user.http.post("/v1/runs", json={**STALLED_RUN, **more})


def stalled(user: ApiUser, held: ExitStack, **fields: Any) -> dict[str, Any]:
    run = user.start(**STALL, **fields)
    held.callback(user.http.put, f"/v1/runs/{run['id']}/cancellation")
    return run


def reach_uploads(server: AppServer, user: ApiUser, held: ExitStack) -> httpx.Response:
    for _ in range(2):
        held.enter_context(slow_upload(user))
    limits: Limits = server.uvicorn.app.state.limits
    until(lambda: limits.uploads.open == 2)
    return upload(user)


def reach_upload_bytes(server: AppServer, user: ApiUser, held: ExitStack) -> httpx.Response:
    held.enter_context(slow_upload(user, declared=900_000))
    limits: Limits = server.uvicorn.app.state.limits
    until(lambda: limits.upload_bytes.open == 900_000)
    return upload(user, padding=400_000)


def reach_sign_ins(server: AppServer, user: ApiUser, held: ExitStack) -> httpx.Response:
    hashes: InFlightLimit = vars(credentials)["_hashes"]
    for _ in range(20):
        held.enter_context(hashes.acquire())
    return user.http.post("/v1/tokens", json=SIGN_IN)


def reach_anonymous_requests(server: AppServer, user: ApiUser, held: ExitStack) -> httpx.Response:
    # Hashes no password: on a slow machine the bucket would fill up again as fast.
    answers = [user.http.post("/v1/tokens/refresh", json={"refresh_token": "x"}) for _ in range(60)]
    return next(answer for answer in answers if answer.status_code == 429)


# Limit -> its scope, how many it allows, and how it is reached. The last one leaves the address without a request.
REFUSALS: dict[FloorName, tuple[LimitScope, int, Callable[[AppServer, ApiUser, ExitStack], httpx.Response]]] = {
    "user_streams": ("user", 3, reach_streams),
    "tenant_queued_runs": ("tenant", 4, reach_waiting_runs),
    "conversation_queued_runs": ("conversation", 2, reach_waiting_runs_of_a_conversation),
    "tenant_uploads": ("tenant", 2, reach_uploads),
    "tenant_upload_bytes": ("tenant", 1024 * 1024, reach_upload_bytes),
    "sign_ins_at_once": ("process", 20, reach_sign_ins),
    "anonymous_requests_per_minute": ("address", 40, reach_anonymous_requests),
}


def test_a_user_follows_so_many_runs_at_once(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    limits: Limits = server.uvicorn.app.state.limits
    run = ada.start(**STALL)
    path = f"/v1/runs/{run['id']}/events"
    with ExitStack() as streams:
        opened = [streams.enter_context(open_stream(ada, path)) for _ in range(3)]
        refused = ada.http.get(path)
        assert_refused(refused, "user_streams", "user", 3)
        # Nor is a run started whose events could not be followed.
        body = {"input": "Hello"}
        assert_refused(
            ada.http.post("/v1/runs", json=body, headers={"Accept": "text/event-stream"}), "user_streams", "user", 3
        )
        assert len(ada.http.get("/v1/conversations").json()["data"]) == 1
        assert kinds(stranger.ask("Hello"))[-1] == "run.completed"
        opened[0].close()
        until(lambda: stream_opens(ada, path))
    until(lambda: limits.streams.open == 0)
    ada.http.put(f"/v1/runs/{run['id']}/cancellation")


def test_a_stream_that_is_refused_or_not_begun_takes_no_place(ada: ApiUser) -> None:
    for _ in range(5):
        assert ada.http.get("/v1/runs/01890000-0000-7000-8000-000000000000/events").status_code == 404
        body = {"input": "Hello", "agent_key": "nobody"}
        answer = ada.http.post("/v1/runs", json=body, headers={"Accept": "text/event-stream"})
        assert answer.status_code == 422
    assert kinds(ada.ask("Hello"))[-1] == "run.completed"


def test_so_many_runs_of_a_tenant_wait(ada: ApiUser, stranger: ApiUser, database_url: str) -> None:
    started = [ada.start(**STALL) for _ in range(2)]
    until(lambda: status_of(ada, started[0]) == "running")
    started += [ada.start(**STALL) for _ in range(3)]
    refused = ada.http.post("/v1/runs", json=STALLED_RUN)
    assert_refused(refused, "tenant_queued_runs", "tenant", 4)
    assert rows(database_url, "SELECT count(*) FROM runs") == [(5,)]
    assert kinds(stranger.ask("Hello"))[-1] == "run.completed"
    for run in reversed(started):
        ada.http.put(f"/v1/runs/{run['id']}/cancellation")
    until(lambda: all(status_of(ada, run) == "cancelled" for run in started))
    assert kinds(ada.ask("Hello"))[-1] == "run.completed"


def test_so_many_runs_wait_in_a_conversation(ada: ApiUser) -> None:
    first = ada.start(**STALL)
    until(lambda: status_of(ada, first) == "running")
    body = {**STALLED_RUN, "conversation_id": first["conversation_id"], "if_busy": "queue"}
    waiting = [ada.http.post("/v1/runs", json=body).json() for _ in range(2)]
    refused = ada.http.post("/v1/runs", json=body)
    assert_refused(refused, "conversation_queued_runs", "conversation", 2)
    # Interrupting adds nothing to the queue.
    newest = ada.http.post("/v1/runs", json={**body, "if_busy": "interrupt"})
    assert newest.status_code == 202
    assert [status_of(ada, run) for run in waiting] == ["cancelled"] * 2
    ada.http.put(f"/v1/runs/{newest.json()['id']}/cancellation")


def test_so_many_images_of_a_tenant_are_on_their_way(server: AppServer, ada: ApiUser, stranger: ApiUser) -> None:
    limits: Limits = server.uvicorn.app.state.limits
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(slow_upload(ada))
        until(lambda: limits.uploads.open == 2)
        assert_refused(upload(ada), "tenant_uploads", "tenant", 2)
        assert upload(stranger).status_code == 201
    until(lambda: limits.uploads.open == 0)
    assert upload(ada).status_code == 201


def test_so_many_bytes_of_a_tenant_are_on_their_way(server: AppServer, ada: ApiUser) -> None:
    limits: Limits = server.uvicorn.app.state.limits
    with slow_upload(ada, declared=900_000):
        until(lambda: limits.upload_bytes.open == 900_000)
        assert_refused(upload(ada, padding=400_000), "tenant_upload_bytes", "tenant", 1024 * 1024)
        assert upload(ada).status_code == 201
    # Alone, any accepted size is.
    until(lambda: limits.upload_bytes.open == 0)
    assert upload(ada, padding=2_000_000).status_code == 201


def test_one_address_signs_in_so_often_a_minute(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with running_server(database_url, provider_url, tmp_path, anonymous_requests_per_minute=5) as server:
        ada = server.sign_up("Ada's")
        answers = [server.anyone().post("/v1/tokens", json=SIGN_IN) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [401] * 4 + [429]
        assert_refused(answers[-1], "anonymous_requests_per_minute", "address", 5)
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 12
        for path, body in [("/v1/signup", {}), ("/v1/tokens/refresh", {"refresh_token": "x"})]:
            assert server.anyone().post(path, json=body).status_code == 429
        # Whoever has a credential is not counted.
        assert ada.http.get("/v1/me").status_code == 200
        # Nobody is believed who is no trusted proxy.
        claimed = server.anyone().post("/v1/tokens", json=SIGN_IN, headers={"X-Forwarded-For": "203.0.113.9"})
        assert claimed.status_code == 429


def test_behind_a_trusted_proxy_each_client_has_a_bucket(database_url: str, provider_url: str, tmp_path: Path) -> None:
    proxies = "127.0.0.0/8,10.0.0.0/8"
    with running_server(
        database_url, provider_url, tmp_path, anonymous_requests_per_minute=2, trusted_proxies=proxies
    ) as server:

        def sign_in(forwarded_for: str) -> int:
            headers = {"X-Forwarded-For": forwarded_for}
            return server.anyone().post("/v1/tokens", json=SIGN_IN, headers=headers).status_code

        assert [sign_in("203.0.113.9") for _ in range(3)] == [401, 401, 429]
        assert sign_in("203.0.113.10") == 401
        # What a client says itself stands further left than what the proxy saw.
        assert sign_in("203.0.113.77, 203.0.113.9") == 429
        assert sign_in("203.0.113.9, 10.1.2.3") == 429
        # IPv6 addresses are counted by network.
        assert [sign_in(f"2001:db8::{number}") for number in range(1, 4)] == [401, 401, 429]
        assert sign_in("2001:db8:0:1::1") == 401


def test_while_redis_is_away_sign_ins_are_not_refused(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with (
        redis_server(tmp_path / "redis") as redis,
        running_server(
            database_url, provider_url, tmp_path, anonymous_requests_per_minute=2, redis_url=redis.url
        ) as server,
    ):
        assert [server.anyone().post("/v1/tokens", json=SIGN_IN).status_code for _ in range(3)] == [401, 401, 429]
        redis.process.kill()
        redis.process.wait()
        assert server.anyone().post("/v1/tokens", json=SIGN_IN).status_code == 401


@pytest.mark.parametrize("path", ["/v1/signup", "/v1/tokens", "/v1/runs"])
def test_a_body_of_nobody_is_small(ada: ApiUser, server: AppServer, path: str) -> None:
    answer = server.anyone().post(path, content=b"x" * 16_385, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "16384 bytes" in answer.json()["detail"]
    chunked = server.anyone().post(
        path, content=iter([b"x" * 10_000] * 2), headers={"Content-Type": "application/json"}
    )
    assert chunked.status_code in {401, 413}


def test_a_body_is_too_large_for_every_operation_but_those_that_get(ada: ApiUser) -> None:
    unknown = str(uuid7())
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            large = bytes((51 if operation["operationId"] == "upload_attachment" else 1) * MEGABYTE + 1)
            # That the document names its status is looked at for every reply.
            answer = ada.http.request(method, re.sub("{.*?}", unknown, path), content=large)
            expected = (200, 204, 404) if method == "get" else (413,)
            assert answer.status_code in expected, (method, path, answer.text)
            assert ("413" in operation["responses"]) == (method != "get")
            assert method != "get" or "requestBody" not in operation
    run = ada.start("Say hello")
    with ada.http.stream("GET", f"/v1/runs/{run['id']}/events", content=bytes(MEGABYTE + 1)) as answer:
        assert kinds(list(events_of(answer)))[-1] == "run.completed"


@pytest.mark.parametrize("credential", ["Bearer easel_at_made-up", "Bearer easel_sk_made-up", "Basic YTpi", "", "\xff"])
def test_a_large_body_is_not_even_read_from_a_credential_that_nobody_has(
    server: AppServer, ada: ApiUser, credential: str
) -> None:
    head = f"POST /v1/runs HTTP/1.1\r\nHost: x\r\nAuthorization: {credential}\r\nContent-Type: application/json\r\n"
    url = httpx.URL(server.base_url)
    for length in ("Content-Length: 1000000", "Transfer-Encoding: chunked"):
        with socket.create_connection((url.host, url.port or 80), timeout=timeouts.ANSWER) as connection:
            connection.sendall(f"{head}{length}\r\n\r\n".encode("latin-1"))
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
    text = "x" * 20_000
    assert ada.http.post("/v1/runs", json={"input": text}).status_code == 202
    chunked = ada.http.post("/v1/runs", content=iter([json.dumps({"input": text}).encode()]))
    assert chunked.status_code == 422  # it has no content type, and its body was read


@pytest.mark.parametrize("kind", ["memory", *REDIS_SERVERS])
async def test_a_bucket_is_refilled_evenly(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        buckets = memory_buckets() if kind == "memory" else redis_buckets(stack, tmp_path, kind)
        waits = [await buckets.take("a", size=4, seconds=2) for _ in range(6)]
        assert waits[:4] == [0] * 4
        assert all(0 < wait <= 0.5 for wait in waits[4:])
        assert await buckets.take("b", size=4, seconds=2) == 0
        time.sleep(0.6)
        assert await buckets.take("a", size=4, seconds=2) == 0
        assert await buckets.take("a", size=4, seconds=2) > 0
        # A token of this one takes less than a microsecond.
        assert [await buckets.take("large", size=5_000_000, seconds=2) for _ in range(3)] == [0, 0, 0]


def memory_buckets() -> TokenBuckets:
    return MemoryTokenBuckets()


def redis_buckets(stack: ExitStack, directory: Path, kind: str) -> TokenBuckets:
    url = stack.enter_context(redis_server(directory / "redis", kind=kind)).url

    @asynccontextmanager
    async def connect() -> AsyncGenerator[Redis]:
        async with cast(Any, Redis).from_url(url) as client:
            yield client

    return RedisTokenBuckets(connect, 3)


def assert_refused(answer: httpx.Response, limit: str, scope: str, allowed: int) -> None:
    assert answer.status_code == 429, answer.text
    received = answer.json()
    told = (received["code"], received["limit"], received["scope"], received["allowed"])
    assert told == ("limit_exceeded", limit, scope, allowed)
    assert int(answer.headers["Retry-After"]) >= 1


@contextmanager
def open_stream(user: ApiUser, path: str) -> Generator[httpx.Response]:
    with user.http.stream("GET", path) as answer:
        assert answer.status_code == 200
        chunks = answer.iter_bytes()  # whose end would close the stream
        next(chunks)
        yield answer


def stream_opens(user: ApiUser, path: str) -> bool:
    with user.http.stream("GET", path) as answer:
        return answer.status_code == 200


def status_of(user: ApiUser, run: dict[str, Any]) -> str:
    return cast(str, user.http.get(f"/v1/runs/{run['id']}").json()["status"])


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeouts.PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def png(padding: int = 0) -> bytes:
    """A small image in a file of at least `padding` bytes."""
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    return data.getvalue() + bytes(padding)


def upload(user: ApiUser, padding: int = 0) -> httpx.Response:
    return user.http.post("/v1/attachments", files={"file": ("a.png", png(padding))})


@contextmanager
def slow_upload(user: ApiUser, declared: int = 1_000) -> Generator[None]:
    """An upload whose body does not come; the end breaks it off."""
    url = httpx.URL(user.base_url)
    lines = [
        "POST /v1/attachments HTTP/1.1",
        f"Host: {url.netloc.decode()}",
        f"Authorization: {user.http.headers['Authorization']}",
        "Content-Type: multipart/form-data; boundary=x",
        f"Content-Length: {declared}",
    ]
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall("\r\n".join([*lines, "", "--x\r\n"]).encode())
        yield
