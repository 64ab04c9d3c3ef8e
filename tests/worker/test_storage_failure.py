"""While the store is away the text still arrives; the image follows once it is back, and is not bought twice."""

import asyncio
import hashlib
import json
import logging
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import text

from app.attachments import spool
from app.db import Database
from tests import timeouts
from tests.app_server import ApiUser, AppServer, Event, events_of, kinds, one, running_server
from tests.results import Results
from tests.servers import Proxy, ProxyMode, s3_server

TERMINAL = ("run.completed", "run.failed", "run.cancelled")
LEASE_SECONDS = 5.0
SPOOL_BYTES = 1_500_000
prove = [pytest.mark.prove, pytest.mark.timeout(300)]

Json = dict[str, Any]


@dataclass(frozen=True)
class Depot:
    """A service whose store is reached through `proxy`."""

    server: AppServer
    proxy: Proxy
    outage: "Outage"


@pytest.fixture
def depot(database_url: str, provider_url: str, tmp_path: Path) -> Generator[Depot]:
    with s3_server(tmp_path / "s3") as s3, refusing_server() as outage, Proxy(s3.endpoint) as proxy:
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        settings: Json = {"storage_provider": "minio", "minio_endpoint": proxy.endpoint, **minio}
        settings |= {"run_lease_seconds": LEASE_SECONDS, "tenant_concurrency": 40, "worker_concurrency": 50}
        outage_port = outage.server_address[1]
        with running_server(database_url, provider_url, tmp_path, **settings) as server:
            yield Depot(server, proxy, Outage(proxy, proxy.target_port, outage_port))
            proxy.mode = "refuse"  # lets the threads go that still wait


class Unavailable(BaseHTTPRequestHandler):
    """Answers 503 to everything."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(503)

    do_GET = do_HEAD = do_DELETE = do_PUT  # noqa: N815 - names that the base class calls

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def refusing_server() -> Generator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Unavailable) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Outage:
    """Ways in which the store fails, by name; "503" is a server in its place that answers nothing else."""

    proxy: Proxy
    store_port: int
    outage_port: int

    def begin(self, kind: str) -> None:
        if kind == "503":
            self.proxy.mode = "refuse"
            self.proxy.target_port = self.outage_port
            self.proxy.mode = "pass"
        else:
            self.proxy.mode = cast(ProxyMode, kind)

    def end(self) -> None:
        self.proxy.mode = "refuse"
        self.proxy.target_port = self.store_port
        self.proxy.mode = "pass"


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", ["refuse", "hang", *(pytest.param(mode, marks=prove) for mode in ("503", "reset_mid"))]
)
def test_a_store_that_is_away_delays_the_image_and_nothing_else(
    depot: Depot, provider_url: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    ada = depot.server.sign_up("Ada's")
    word = f"w{uuid.uuid4().hex}"
    depot.outage.begin(mode)
    events, seconds_to_end = draw_timed(ada, f"Draw a house called {word}")
    assert seconds_to_end < timeouts.TEXT_END
    assert kinds(events)[-2:] == ["message.completed", "run.completed"]
    assert [kind for kind in kinds(events) if kind in TERMINAL] == ["run.completed"]
    assert one(events, "message.completed")["message"]["text"]
    assert "attachment.created" not in kinds(events)
    pending = assert_reported_as_waiting(ada, events)
    assert_logged(caplog, ada, events)

    depot.outage.end()
    stored = wait_until_stored(ada, pending["object_id"])
    assert stored["sha256"] == pending["sha256"]
    assert hashlib.sha256(httpx.get(stored["url"]).content).hexdigest() == pending["sha256"]
    (shown,) = ada.messages(pending["conversation_id"])[-1]["attachments"]
    assert (shown["object_id"], shown["status"]) == (stored["object_id"], "stored")
    assert httpx.get(shown["url"]).status_code == 200
    assert posts_with(provider_url, word) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "count"),
    [("hang", 4), *(pytest.param(mode, 15, marks=prove) for mode in ("refuse", "hang", "503", "reset_mid"))],
)
def test_many_images_survive_an_outage(
    depot: Depot, provider_url: str, mode: str, count: int, results: Results
) -> None:
    """The spool is full after the first of them: the others come again from the provider."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "MAX_BYTES", SPOOL_BYTES)
        depot.outage.begin(mode)
        word, drawn, slowest = draw_many(depot.server.sign_up("Ada's"), count)
        depot.outage.end()
        seconds = assert_recovered(drawn)
    assert posts_with(provider_url, word) == count
    kept = f"{len(drawn)}, the text {slowest:.1f} s late, recovered after {seconds:.1f} s"
    results(8, f"storage: {mode}", tried=f"{count} images", kept=kept)


@pytest.mark.parametrize("count", [pytest.param(20, marks=prove)])
def test_a_full_disk_loses_no_image(
    depot: Depot, provider_url: str, tmp_path: Path, count: int, results: Results
) -> None:
    with full_disk(tmp_path / "spool"):
        depot.outage.begin("refuse")
        word, drawn, _ = draw_many(depot.server.sign_up("Ada's"), count)
        assert not list((tmp_path / "spool").iterdir()), "a disk of 64 KiB took an image"
        depot.outage.end()
        seconds = assert_recovered(drawn)
    assert posts_with(provider_url, word) == count
    results(
        8, "storage away, disk full", tried=f"{count} images", kept=f"{len(drawn)}, recovered after {seconds:.1f} s"
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(20, marks=prove)])
def test_a_worker_that_dies_with_its_spool_loses_no_image(
    database_url: str, provider_url: str, tmp_path: Path, count: int, results: Results
) -> None:
    with s3_server(tmp_path / "s3") as s3, Proxy(s3.endpoint) as proxy:
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        settings: Json = {"storage_provider": "minio", "minio_endpoint": proxy.endpoint, **minio}
        settings |= {"run_lease_seconds": LEASE_SECONDS, "secret_key": "one for both"}
        with running_server(database_url, provider_url, tmp_path / "first", **settings) as server:
            ada = server.sign_up("Ada's")
            proxy.mode = "refuse"
            word, drawn, _ = draw_many(ada, count)
        proxy.mode = "pass"
        with (
            running_server(database_url, provider_url, tmp_path / "second", **settings) as server,
            # The first house has closed the client that she had.
            httpx.Client(base_url=server.base_url, headers=ada.http.headers, timeout=30) as ada.http,
        ):
            seconds = assert_recovered(drawn)
    assert posts_with(provider_url, word) == count
    kept = f"{len(drawn)}, recovered after {seconds:.1f} s"
    results(8, "storage away, worker and spool lost", tried=f"{count} images", kept=kept)


@pytest.mark.prove
def test_an_image_that_the_provider_has_forgotten_stays_pending(
    depot: Depot,
    database_url: str,
    provider_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(spool, "MAX_BYTES", 0)
    ada = depot.server.sign_up("Ada's")
    depot.outage.begin("refuse")
    _, (pending,), _ = draw_many(ada, 1)
    response_id = asyncio.run(response_of(database_url, pending.row["run_id"]))
    key = {"Authorization": "Bearer sk-test"}
    assert httpx.delete(f"{provider_url}/responses/{response_id}", headers=key).status_code == 200
    depot.outage.end()
    wait_until(lambda: "image.not_at_provider" in [record.getMessage() for record in caplog.records])
    assert pending.read()["status"] == "pending"


@pytest.mark.slow
def test_an_image_that_was_made_smaller_comes_again_from_the_provider(
    depot: Depot, provider_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MAX_BYTES", 0)
    ada, word = depot.server.sign_up("Ada's"), f"w{uuid.uuid4().hex}"
    depot.outage.begin("refuse")
    events, _ = draw_timed(ada, f"Draw a house called {word} [offline: big=8]")
    pending = assert_reported_as_waiting(ada, events)
    depot.outage.end()
    stored = wait_until_stored(ada, pending["object_id"])
    assert stored["options"]["reduced_from"] == 8 * 1024**2
    assert hashlib.sha256(httpx.get(stored["url"]).content).hexdigest() == stored["sha256"] == pending["sha256"]
    assert posts_with(provider_url, word) == 1


def test_a_spooled_image_is_not_put_again_for_its_copy_at_the_end(
    depot: Depot, caplog: pytest.LogCaptureFixture
) -> None:
    depot.outage.begin("refuse")
    # The text takes longer than the spool: by then nobody holds the bytes that the copy could be compared with.
    depot.server.sign_up("Ada's").draw("Draw a house [offline: words=9000]")
    assert [record.getMessage() for record in caplog.records].count("image.ingest_failed") == 1


def draw_timed(ada: ApiUser, asked: str) -> tuple[list[Event], float]:
    """The events, and the seconds from the last piece of text to the terminal event, as a reader sees them."""
    body = {"input": asked, "agent_key": "designer"}
    events: list[Event] = []
    text_ended = 0.0
    with ada.http.stream("POST", "/v1/runs", json=body, headers={"Accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200
        for event in events_of(answer):
            events.append(event)
            if event["type"] == "text.delta":
                text_ended = time.monotonic()
    assert text_ended, "there was no text"
    return events, time.monotonic() - text_ended


def assert_reported_as_waiting(ada: ApiUser, events: list[Event]) -> Json:
    """The image is announced as failed for now, and pending wherever it is read; its row."""
    failed = one(events, "attachment.failed")
    assert (failed["code"], failed["retryable"]) == ("storage_unavailable", True)
    pending = cast(Json, ada.http.get(f"/v1/attachments/{failed['object_id']}").json())
    assert (pending["status"], pending["url"]) == ("pending", None)
    assert ada.http.get(f"/v1/attachments/{failed['object_id']}/content").status_code == 409
    (shown,) = one(events, "message.completed")["message"]["attachments"]
    assert (shown["object_id"], shown["status"], shown["url"]) == (failed["object_id"], "pending", None)
    return pending


def assert_logged(caplog: pytest.LogCaptureFixture, ada: ApiUser, events: list[Event]) -> None:
    (line,) = [vars(record) for record in caplog.records if record.getMessage() == "image.ingest_failed"]
    assert line["levelno"] == logging.ERROR
    assert line["tenant_id"] == ada.signed_up["tenant"]["id"]
    assert line["run_id"] == events[0]["run_id"]
    assert line["tool_call_id"] == one(events, "attachment.failed")["tool_call_id"]


def wait_until_stored(ada: ApiUser, object_id: str) -> Json:
    def read() -> Json:
        return cast(Json, ada.http.get(f"/v1/attachments/{object_id}").json())

    wait_until(lambda: read()["status"] == "stored")
    return read()


def wait_until(done: Callable[[], bool]) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < timeouts.STORED_AFTER_OUTAGE
        time.sleep(0.2)
    return time.monotonic() - began


@dataclass(frozen=True)
class Drawn:
    """An image that was received to be pending."""

    ada: ApiUser
    row: Json

    def read(self) -> Json:
        return cast(Json, self.ada.http.get(f"/v1/attachments/{self.row['object_id']}").json())


def draw_many(ada: ApiUser, count: int) -> tuple[str, list[Drawn], float]:
    """A word in all their inputs, the pending images of as many runs at once, the longest wait for a run's end."""
    word = f"w{uuid.uuid4().hex}"
    with ThreadPoolExecutor(count) as threads:
        asked = [threads.submit(draw_timed, ada, f"Draw a house called {word}, number {n}") for n in range(count)]
        received = [one.result() for one in asked]
    slowest = max(seconds for _, seconds in received)
    assert slowest < timeouts.TEXT_END
    for events, _ in received:
        assert kinds(events)[-1] == "run.completed"
    return word, [Drawn(ada, assert_reported_as_waiting(ada, events)) for events, _ in received], slowest


def assert_recovered(drawn: list[Drawn]) -> float:
    """Every image is stored as it was paid for, shown in its message, and gets its variants; seconds till stored."""
    seconds = wait_until(lambda: all(one.read()["status"] == "stored" for one in drawn))
    for image in drawn:
        (shown,) = image.ada.messages(image.row["conversation_id"])[-1]["attachments"]
        assert (shown["object_id"], shown["status"]) == (image.row["object_id"], "stored")
        answer = httpx.get(shown["url"])
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == image.row["sha256"]
    wait_until(lambda: all(one.read()["variants"] for one in drawn))
    return seconds


@contextmanager
def full_disk(directory: Path) -> Generator[None]:
    """A file system of 64 KiB at `directory`."""
    directory.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", directory], check=False).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


async def response_of(database_url: str, run_id: str) -> str:
    database = Database(database_url, pool_size=1)
    async with database.engine.connect() as connection:
        found = await connection.scalar(text("SELECT response_id FROM runs WHERE id = :id"), {"id": run_id})
    await database.close()
    return str(found)


def posts_with(provider_url: str, word: str) -> int:
    """How many responses were asked for with that word in their input."""
    requests = cast(list[Json], httpx.get(f"{provider_url.removesuffix('/v1')}/offline/requests").json())
    return sum(request["method"] == "POST" and word in json.dumps(request["body"]) for request in requests)
