"""What a socket may send before a request is one, and how slowly; against the real server, byte by byte."""

import asyncio
import json
import re
import socket
import statistics
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app.http_protocol import HEAD_BYTES, SURPLUS
from app.http_rejection import LINGER_BYTES
from tests import timeouts
from tests.app_server import ApiUser, AppServer, kinds, running_alone, running_server
from tests.floods import Flood, large_heads
from tests.results import Results

pytestmark = pytest.mark.proof(26, "heads and bodies")

SECONDS = 0.4
# The window is as long as the deadline of a head: so many bytes are enough.
ENOUGH = int(1024 * SECONDS)
FILLER = b"a" * (HEAD_BYTES + 1)
LARGE_HEADS = {
    "a large header": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Large: " + FILLER + b"\r\n\r\n",
    "a large header that never ends": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Large: " + FILLER * 5,
    "a large address": b"GET /livez?" + FILLER + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "many small headers": b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 12_000 + b"\r\n",
    "empty lines": b"\r\n" * HEAD_BYTES,
    "a large trailer": b"POST /v1/signup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX-Large: " + FILLER * 5,
}
SLOW_BODY = b"POST /v1/signup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"

prove = [pytest.mark.prove, pytest.mark.timeout(300)]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.http_protocol.HEAD_SECONDS", SECONDS)
    monkeypatch.setattr("app.http_protocol.BODY_WINDOW_SECONDS", SECONDS)


@contextmanager
def connected(server: AppServer) -> Generator[socket.socket]:
    address = server.base_url.removeprefix("http://").split(":")
    with closing(socket.create_connection((address[0], int(address[1])), timeout=timeouts.ANSWER)) as connection:
        yield connection


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    with suppress(ConnectionError):
        while data := connection.recv(65536):
            found += data
    return found


def trickle(connection: socket.socket, byte: bytes = b"a", *, pause: float = SECONDS / 8) -> bytes:
    """What comes while a byte is sent now and then, until the server closes."""
    ended = threading.Event()

    def send() -> None:
        with suppress(OSError):
            while not ended.wait(pause):
                connection.sendall(byte)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return received(connection)
    finally:
        ended.set()
        thread.join()


def problem_in(answer: bytes, status: int, code: str) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(f"http/1.1 {status} ".encode()), answer[:200]
    assert b"content-type: application/problem+json" in lines
    assert b"connection: close" in lines
    assert b"x-content-type-options: nosniff" in lines
    problem: dict[str, Any] = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert f"x-request-id: {problem['request_id']}".encode() in lines
    return problem


@pytest.mark.parametrize("name", LARGE_HEADS)
def test_a_large_head_is_answered_with_431(server: AppServer, name: str) -> None:
    with connected(server) as connection:
        connection.sendall(LARGE_HEADS[name])
        problem = problem_in(received(connection), 431, "http_431")
    assert str(HEAD_BYTES) in problem["detail"]


def test_who_goes_on_sending_still_reads_the_answer(server: AppServer) -> None:
    with connected(server) as connection:
        connection.sendall(LARGE_HEADS["a large header"])
        assert connection.recv(1, socket.MSG_PEEK)
        for _ in range(5):
            connection.sendall(b"a" * 10_000)
            time.sleep(0.02)
        problem_in(received(connection), 431, "http_431")


def test_who_goes_on_pouring_is_not_cut_off_before_the_answer(server: AppServer) -> None:
    flood = Flood(server.base_url, "", time.monotonic() + SECONDS)
    asyncio.run(large_heads(flood))
    # A client that waits for a processor may look up too late.
    assert flood.statuses["none"] <= flood.statuses["431"] / 2


def test_a_head_of_just_the_allowed_size_is_served(server: AppServer) -> None:
    with connected(server) as connection:
        large = b"a" * (HEAD_BYTES - 100)
        connection.sendall(b"GET /livez HTTP/1.1\r\nConnection: close\r\nX-Large: " + large + b"\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200 ")


def test_a_hundred_megabytes_of_head_are_not_taken(server: AppServer) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Large: ")
        taken = 0
        with suppress(ConnectionError):
            for _ in range(1600):
                taken += connection.send(FILLER)
    # Besides what the server drops while the client may read why, the kernel's buffers take some.
    assert taken < LINGER_BYTES + 20 * 1024 * 1024


def test_no_valid_http_is_a_problem_too(server: AppServer) -> None:
    with connected(server) as connection:
        connection.sendall(b"Hello\r\n\r\n")
        problem_in(received(connection), 400, "http_400")


@pytest.mark.usefixtures("hurried")
def test_a_head_that_trickles_in_has_a_deadline(server: AppServer) -> None:
    # The server's clock may begin with the connection.
    began = time.monotonic()
    with connected(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        problem_in(trickle(connection), 408, "http_408")
        assert SECONDS <= time.monotonic() - began < timeouts.ALIVE + SECONDS


@pytest.mark.usefixtures("hurried")
def test_a_silent_socket_is_closed_without_a_word(server: AppServer) -> None:
    with connected(server) as connection:
        assert received(connection) == b""


@pytest.mark.usefixtures("hurried")
def test_empty_lines_do_not_keep_a_connection(server: AppServer) -> None:
    with connected(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        assert trickle(connection, b"\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("hurried")
def test_between_two_requests_a_connection_may_be_idle_for_longer(server: AppServer) -> None:
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(2 * SECONDS)


@pytest.mark.usefixtures("hurried")
def test_a_body_that_trickles_in_is_given_up(server: AppServer) -> None:
    with connected(server) as connection:
        connection.sendall(SLOW_BODY)
        problem_in(trickle(connection), 408, "http_408")


@pytest.mark.usefixtures("hurried")
def test_the_body_of_an_answered_request_cannot_trickle_on(server: AppServer) -> None:
    with connected(server) as connection:
        connection.sendall(b"POST /v1/attachments HTTP/1.1\r\nContent-Length: 5000\r\n\r\n")
        answer = trickle(connection)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"408" not in answer


@pytest.mark.usefixtures("hurried")
def test_a_body_that_is_slow_but_fast_enough_is_read(server: AppServer) -> None:
    body = json.dumps({"email": "x", "password": "x" * 8 * ENOUGH, "tenant_name": "x"}).encode()
    head = f"POST /v1/signup HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    with connected(server) as connection:
        connection.sendall(head.encode() + b"Connection: close\r\n\r\n")
        for start in range(0, len(body), ENOUGH // 2):
            connection.sendall(body[start : start + ENOUGH // 2])
            time.sleep(SECONDS / 4)
        assert received(connection).startswith(b"HTTP/1.1 422 ")


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
def test_a_client_that_the_app_lets_wait_is_not_given_up(expect: bytes) -> None:
    """The app reads nothing for some windows: the client sends what fits, or waits for leave to send."""
    early = 400_000 if not expect else 0
    with (
        running_alone(_read_late) as port,
        closing(socket.create_connection(("127.0.0.1", port), timeout=timeouts.ANSWER)) as connection,
    ):
        head = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 400001\r\n" + expect + b"\r\n"
        connection.sendall(head + b"a" * early)
        if expect:
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        else:
            time.sleep(4.2 * SECONDS)
        connection.sendall(b"a" * (400_001 - early))
        assert b"\r\n400001\r\n" in received(connection)


async def _read_late(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(4 * SECONDS)
    size, more = 0, True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        size += len(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def test_pipelined_and_chunked_requests_are_served(ada: ApiUser, server: AppServer) -> None:
    authorization = f"Authorization: {ada.http.headers['Authorization']}\r\n".encode()
    body = b'{"name": "By pieces"}'
    pieces = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body)
    chunked = (
        b"POST /v1/api-keys HTTP/1.1\r\nContent-Type: application/json\r\n"
        + authorization
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + pieces
        + b"0\r\nX-Sum: 1\r\n\r\n"
    )
    last = b"GET /v1/me HTTP/1.1\r\nConnection: close\r\n" + authorization + b"\r\n"
    with connected(server) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n\r\n" + chunked * 2 + last)
        answers = received(connection)
    assert re.findall(rb"HTTP/1\.1 (\d+) ", answers) == [b"200", b"201", b"201", b"200"]


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_a_stream_outlives_all_deadlines_even_with_half_a_request_behind_it(ada: ApiUser, server: AppServer) -> None:
    run = ada.start("Draw a slow house [offline: slow=2]", agent_key="designer")
    head = f"GET /v1/runs/{run['id']}/events HTTP/1.1\r\nAuthorization: {ada.http.headers['Authorization']}\r\n\r\n"
    with connected(server) as connection:
        began = time.monotonic()
        connection.sendall(head.encode() + b"GET /livez HTTP/1.1\r\nX-Slow: ")
        answer = received(connection)
        assert time.monotonic() - began > 2 * SECONDS
    assert answer.count(b"event: run.completed") == 1
    # Once the stream has ended, the half request has its deadline.
    problem_in(answer[answer.rindex(b"HTTP/1.1 408") :], 408, "http_408")


def test_a_websocket_is_refused_as_ever(server: AppServer) -> None:
    with connected(server) as connection:
        connection.sendall(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert received(connection).startswith(b"HTTP/1.1 403 ")


def test_connections_are_bounded_and_probes_get_through(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with (
        running_server(database_url, provider_url, tmp_path, connections_max=3) as server,
        ExitStack() as stack,
    ):
        held = [stack.enter_context(connected(server)) for _ in range(3)]
        assert answers_to(server, b"/livez") == b"200"
        assert answers_to(server, b"/readyz?x=1") == b"200"
        with connected(server) as further:
            further.sendall(b"GET /v1/me HTTP/1.1\r\n\r\n")
            answer = received(further)
        problem_in(answer, 503, "too_many_connections")
        assert b"retry-after: " in answer.lower()
        for connection in held:
            connection.sendall(b"GET /v1/agents HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 401 ")
        until_served(server)


def test_even_the_probes_places_are_bounded_and_free_themselves(
    database_url: str, provider_url: str, tmp_path: Path
) -> None:
    with (
        running_server(database_url, provider_url, tmp_path, connections_max=1) as server,
        ExitStack() as stack,
    ):
        held = [stack.enter_context(connected(server)) for _ in range(1 + SURPLUS)]
        assert answers_to(server, b"/livez") == b""
        for connection in held[1:]:
            assert received(connection) == b""
        assert answers_to(server, b"/livez") == b"200"


def answers_to(server: AppServer, path: bytes) -> bytes:
    with connected(server) as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nConnection: close\r\n\r\n")
        return received(connection)[9:12]


def until_served(server: AppServer) -> None:
    deadline = time.monotonic() + timeouts.ANSWER
    while answers_to(server, b"/v1/me") != b"401":
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("looks", [100, pytest.param(1000, marks=prove)])
def test_two_hundred_slow_sockets_slow_nobody_down(
    ada: ApiUser, server: AppServer, looks: int, results: Results
) -> None:
    usual = [time_one(ada) for _ in range(looks)]
    with ExitStack() as stack:
        sockets = [stack.enter_context(connected(server)) for _ in range(200)]
        for number, connection in enumerate(sockets):
            connection.sendall(SLOW_BODY if number % 2 else b"GET /livez HTTP/1.1\r\nX-Slow: ")
        ended = threading.Event()
        sender = threading.Thread(target=send_slowly, args=(sockets, ended))
        sender.start()
        during = [time_one(ada) for _ in range(looks)]
        ended.set()
        sender.join()
    assert statistics.median(during) <= 2 * statistics.median(usual) + 0.02 * timeouts.SCALE
    assert kinds(ada.ask("Hello"))[-1] == "run.completed"
    if looks > 100:
        assert p99(during) <= 2 * p99(usual)
        results(
            26,
            "200 sockets at 1 B/s",
            tried=f"{looks} requests of a member",
            kept=f"p50 {statistics.median(usual) * 1000:.1f} -> {statistics.median(during) * 1000:.1f} ms, "
            f"p99 {p99(usual) * 1000:.1f} -> {p99(during) * 1000:.1f} ms",
        )


def send_slowly(sockets: list[socket.socket], ended: threading.Event) -> None:
    while not ended.wait(1):
        for connection in sockets:
            with suppress(OSError):
                connection.sendall(b"a")


def time_one(ada: ApiUser) -> float:
    began = time.monotonic()
    assert ada.http.get("/v1/me").status_code == 200
    return time.monotonic() - began


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]
