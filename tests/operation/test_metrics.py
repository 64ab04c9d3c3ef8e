"""What operators see on METRICS_PORT: metrics of API and worker, liveness and readiness of both."""

import asyncio
import contextlib
import http.client
import socket
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from app.attachments.spool import Spool
from app.db import Database, uuid7
from app.logins import EMBEDDED_LOGIN
from app.storage.keys import upload_key
from app.storage.memory import MemoryStore
from app.storage.store import ObjectMissing
from app.worker import gauges
from tests import timeouts
from tests.app_server import ApiUser, AppServer, kinds, running_server, starting_easel
from tests.conftest import Postgres
from tests.made_streams import png
from tests.operation.test_hot_queries import faults
from tests.scrapes import Scrape, scrape, worst_case
from tests.servers import Proxy, free_port, redis_server, s3_server
from tests.tables import rows
from tests.timeouts import wait_until
from tests.volume import Volume, insert_volume

MOST_SERIES = 2_000
OTHERS_END_SECONDS = 5.0
FAMILIES_OF_OURS = 12
HISTOGRAMS_OF_OURS = 3


@dataclass(frozen=True)
class Monitored:
    """A service that is scraped; its storage is reached through `storage`."""

    server: AppServer
    port: int
    storage: Proxy

    def scrape(self) -> Scrape:
        return scrape(self.port)

    def health(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=timeouts.ANSWER)


@pytest.fixture(scope="module")
def monitored(
    postgres: Postgres, migrated_template: str, provider_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Monitored]:
    directory, port = tmp_path_factory.mktemp("monitored"), free_port()
    with (
        postgres.database(migrated_template) as url,
        s3_server(directory / "s3") as s3,
        Proxy(s3.endpoint) as storage,
        running_server(
            url,
            provider_url,
            directory,
            login=EMBEDDED_LOGIN,
            metrics_port=port,
            storage_provider="minio",
            minio_endpoint=storage.endpoint,
            minio_access_key=s3.access_key,
            minio_secret_key=s3.secret_key,
            minio_secure=False,
        ) as server,
    ):
        # What other servers of this process execute still would be counted as well.
        with contextlib.suppress(AssertionError):
            wait_until(lambda: scrape(port).value("easel_worker_runs") == 0, OTHERS_END_SECONDS)
        yield Monitored(server, port, storage)


@pytest.fixture
def server(monitored: Monitored) -> AppServer:
    return monitored.server


@pytest.fixture(autouse=True)
def always_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.worker.gauges.LOOK_SECONDS", 0.0)


def test_a_run_is_counted_by_agent_status_and_code_with_its_times(monitored: Monitored, ada: ApiUser) -> None:
    grown = growth(monitored, lambda: ada.ask("Hello"))
    assert grown("easel_runs_total") == grown("easel_runs_total", agent="assistant", status="completed", code="") == 1
    assert grown("easel_run_seconds_count", agent="assistant") == 1
    assert grown("easel_run_queue_seconds_count") == 1
    assert grown("easel_run_first_output_seconds_count") == 1
    queued, first = grown("easel_run_queue_seconds_sum"), grown("easel_run_first_output_seconds_sum")
    assert 0 <= queued < first <= queued + grown("easel_run_seconds_sum")


def test_a_run_that_fails_is_counted_by_its_error_code(monitored: Monitored, ada: ApiUser) -> None:
    grown = growth(monitored, lambda: ada.ask("Hello [offline: http=401]"))
    assert grown("easel_runs_total") == grown("easel_runs_total", status="failed", code="upstream_unauthorized") == 1
    assert (
        grown("easel_provider_calls_total") == grown("easel_provider_calls_total", outcome="upstream_unauthorized") == 1
    )
    assert grown("easel_provider_call_seconds_count", outcome="failed") == 1


def test_runs_that_are_stopped_are_counted_whether_they_had_started_or_not(monitored: Monitored, ada: ApiUser) -> None:
    def stop_two() -> None:
        running = ada.start("Draw [offline: slow=30]", agent_key="designer")
        wait_for(monitored, "easel_runs_open", 1, status="running")
        assert monitored.scrape().value("easel_worker_runs") >= 1
        waiting = ada.start("Hello", conversation_id=running["conversation_id"], if_busy="queue")
        assert monitored.scrape().value("easel_runs_open", status="queued") == 1
        for run in (waiting, running):
            assert ada.http.put(f"/v1/runs/{run['id']}/cancellation").is_success
            assert kinds(ada.events(run["id"]))[-1] == "run.cancelled"

    grown = growth(monitored, stop_two)
    assert grown("easel_runs_total", status="cancelled", agent="designer") == 2
    assert grown("easel_provider_calls_total", outcome="cancelled") == 1
    assert grown("easel_run_seconds_count") == 1
    wait_for(monitored, "easel_runs_open", 0)


def test_a_queued_run_that_goes_with_its_conversation_is_counted(monitored: Monitored, ada: ApiUser) -> None:
    def delete_both() -> None:
        running = ada.start("Draw [offline: slow=30]", agent_key="designer")
        wait_for(monitored, "easel_runs_open", 1, status="running")
        ada.start("Hello", conversation_id=running["conversation_id"], if_busy="queue")
        assert ada.http.delete(f"/v1/conversations/{running['conversation_id']}").is_success
        wait_for(monitored, "easel_runs_open", 0)

    assert growth(monitored, delete_both)("easel_runs_total", status="cancelled") >= 1


def test_a_run_of_a_lost_worker_is_counted_as_taken_over(monitored: Monitored, ada: ApiUser) -> None:
    def lose_the_lease() -> None:
        run = ada.start("Draw [offline: slow=30]", agent_key="designer")
        wait_for(monitored, "easel_runs_open", 1, status="running")
        assert monitored.server.settings.database_url is not None
        url = monitored.server.settings.database_url.get_secret_value()
        expired = "UPDATE runs SET lease_until = now() - interval '1 minute' WHERE id = :id RETURNING id"
        assert rows(url, expired, {"id": run["id"]})
        wait_for(monitored, "easel_run_takeovers_total", before + 1)
        assert ada.http.put(f"/v1/runs/{run['id']}/cancellation").is_success
        wait_for(monitored, "easel_runs_open", 0)

    before = monitored.scrape().value("easel_run_takeovers_total")
    assert growth(monitored, lose_the_lease)("easel_run_queue_seconds_count") == 1


def test_an_upload_is_counted_by_its_kind(monitored: Monitored, ada: ApiUser) -> None:
    grown = growth(monitored, lambda: ada.http.post("/v1/attachments", files={"file": ("a.png", png("red"))}))
    assert grown("easel_images_stored_total") == grown("easel_images_stored_total", kind="upload") == 1


def test_a_picture_is_counted_with_its_call_its_tokens_and_the_storage(monitored: Monitored, ada: ApiUser) -> None:
    grown = growth(monitored, lambda: ada.draw("Draw a boat"))
    assert grown("easel_images_stored_total") == grown("easel_images_stored_total", kind="generated") == 1
    assert grown("easel_provider_calls_total", outcome="completed") == 1
    assert grown("easel_provider_call_seconds_count", outcome="completed") == 1
    assert grown("easel_provider_tokens_total", kind="output", outcome="completed", model="gpt-6.1-sol") > 0
    assert grown("easel_provider_tokens_total", kind="image_output", model="gpt-image-2.6-sunburst") > 0
    assert grown("easel_storage_seconds_count", operation="put", outcome="ok") >= 1
    assert grown("easel_storage_seconds_count", outcome="error") == 0


def test_tokens_of_a_response_that_fails_are_counted_apart(monitored: Monitored, ada: ApiUser) -> None:
    grown = growth(monitored, lambda: ada.ask("Hello [offline: incomplete]"))
    assert grown("easel_provider_tokens_total", outcome="failed") > 0
    assert grown("easel_provider_tokens_total", outcome="completed") == 0


def test_an_image_that_fails_is_counted_by_its_code(monitored: Monitored, ada: ApiUser) -> None:
    grown = growth(monitored, lambda: ada.draw("Draw a boat [offline: moderation]"))
    assert grown("easel_image_failures_total") == grown("easel_image_failures_total", code="moderation_blocked") == 1
    assert grown("easel_images_stored_total") == 0


@pytest.mark.slow
def test_images_that_wait_for_the_storage_are_seen_until_they_are_stored(monitored: Monitored, ada: ApiUser) -> None:
    def draw_during_an_outage() -> None:
        monitored.storage.mode = "refuse"
        try:
            assert "attachment.failed" in kinds(ada.draw("Draw a boat"))
            seen = monitored.scrape()
        finally:
            monitored.storage.mode = "pass"
        assert seen.value("easel_images_pending") == seen.value("easel_spool_files") == 1
        assert 0 < seen.value("easel_images_oldest_pending_seconds") < timeouts.PATIENCE
        assert 1_000 < seen.value("easel_spool_bytes") < seen.value("easel_spool_limit_bytes")
        wait_for(monitored, "easel_images_pending", 0)

    grown = growth(monitored, draw_during_an_outage)
    assert grown("easel_storage_seconds_count", operation="put", outcome="error") >= 1
    assert grown("easel_image_failures_total", code="storage_unavailable") == 1
    assert grown("easel_images_stored_total", kind="generated") == 1
    wait_for(monitored, "easel_spool_files", 0)


def test_an_image_that_the_disk_refuses_is_counted(
    monitored: Monitored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.attachments.spool.MAX_BYTES", 2)
    keeping = Spool(tmp_path).keep(uuid7(), uuid7(), b"three")
    assert growth(monitored, lambda: asyncio.run(keeping))("easel_spool_failures_total") == 1


def test_an_object_that_is_not_there_is_an_answer_of_the_storage(monitored: Monitored) -> None:
    async def look() -> None:
        store = MemoryStore()
        with contextlib.suppress(ObjectMissing):
            await store.size(upload_key(uuid7(), uuid7(), "png"))
        await store.close()

    grown = growth(monitored, lambda: asyncio.run(look()))
    assert grown("easel_storage_seconds_count", operation="size", outcome="ok") == 1


def test_periodic_work_that_fails_is_counted(monitored: Monitored, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    before = monitored.scrape().value("easel_housekeeping_failures_total", task="store_spooled")
    monkeypatch.setattr("app.worker.housekeeping.store_spooled", fail)
    wait_until(lambda: monitored.scrape().value("easel_housekeeping_failures_total", task="store_spooled") > before)


def test_open_streams_and_the_pool_are_seen(monitored: Monitored, ada: ApiUser) -> None:
    run = ada.start("Draw [offline: slow=30]", agent_key="designer")
    with ada.http.stream("GET", f"/v1/runs/{run['id']}/events") as answer:
        frames = answer.iter_bytes()
        next(frames)
        assert monitored.scrape().value("easel_streams_open") == 1
        assert ada.http.put(f"/v1/runs/{run['id']}/cancellation").is_success
        list(frames)
    wait_for(monitored, "easel_streams_open", 0)
    assert monitored.scrape().value("easel_database_pool_size") == monitored.server.settings.database_pool_size
    assert growth(monitored, lambda: ada.http.get("/v1/me"))("easel_database_pool_wait_seconds_count") >= 1


def test_responses_are_counted_by_the_class_of_their_status(monitored: Monitored, ada: ApiUser) -> None:
    grown = growth(monitored, lambda: [ada.http.get(path) for path in ("/v1/me", "/v1/me", "/v1/nothing")])
    assert grown("easel_http_response_seconds_count", status="2xx") == 2
    assert grown("easel_http_response_seconds_count", status="4xx") == 1


def test_a_fault_of_our_own_is_counted_as_5xx(
    monitored: Monitored, ada: ApiUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("app.agents.routes._view", fail)
    grown = growth(monitored, lambda: ada.http.get("/v1/agents"))
    assert grown("easel_http_response_seconds_count", status="5xx") == 1


def test_a_transaction_that_finds_no_connection_is_counted(
    monitored: Monitored, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.pool.POOL_WAIT_SECONDS", 0.05)

    async def ask_for_two() -> None:
        database = Database(database_url, pool_size=1)
        async with database.engine.connect():
            with contextlib.suppress(Exception):
                async with database.engine.connect():
                    pass
        await database.close()

    grown = growth(monitored, lambda: asyncio.run(ask_for_two()))
    assert grown("easel_database_pool_timeouts_total") == 1
    assert grown("easel_database_pool_wait_seconds_bucket", le="0.025") < grown(
        "easel_database_pool_wait_seconds_count"
    )


def test_nobody_but_operators_can_ask(monitored: Monitored) -> None:
    assert _status(monitored.server.uvicorn.config.port, "/metrics") == 404
    assert [monitored.health(path).status_code for path in ("/livez", "/readyz", "/v1/me")] == [200, 200, 404]


def test_there_are_enough_families_and_histograms_of_our_own(monitored: Monitored) -> None:
    seen = monitored.scrape()
    histograms = {
        line.split()[2] for line in seen.text.splitlines() if line.startswith("# TYPE easel_") if "histogram" in line
    }
    assert len([name for name in seen.families if name.startswith("easel_")]) >= FAMILIES_OF_OURS
    assert len(histograms) >= HISTOGRAMS_OF_OURS


@pytest.mark.parametrize("tenants", [8, pytest.param(1_000, marks=[pytest.mark.prove, pytest.mark.timeout(600)])])
def test_more_tenants_make_no_more_series_and_none_is_named(monitored: Monitored, tenants: int) -> None:
    def use(number: int) -> list[str]:
        user = monitored.server.sign_up(f"Tenant number {number}")
        run = user.draw()[0]["run_id"] if number % 20 == 0 else user.ask("Hello")[0]["run_id"]
        user.ask("Hello [offline: failed]")
        user.http.close()
        return [str(run), user.id, user.signed_up["tenant"]["id"], user.signed_up["tenant"]["name"], user.email]

    use(0)
    before = monitored.scrape()
    with ThreadPoolExecutor(8) as pool:
        named = [name for names in pool.map(use, range(1, tenants + 1)) for name in names]
    after = monitored.scrape()
    assert after.value("easel_runs_total") - before.value("easel_runs_total") == 2 * tenants
    assert [name for name in named if name in after.text] == []
    # Housekeeping may have asked the storage for something meanwhile. A tenant more would be ten series more.
    assert len(after.series) < len(before.series) + 40
    assert len(after.series) <= MOST_SERIES


def test_in_the_worst_case_there_are_not_too_many_series(monitored: Monitored) -> None:
    """Every agent with every way to fail, every model with every outcome, however many there are of both."""
    counted = worst_case()
    read = [one for one in monitored.scrape().series if one.name not in counted.labels()]
    assert len(read) >= 10
    assert len(counted.series) + len(read) <= MOST_SERIES
    assert counted.value("easel_runs_total", agent="other") > counted.value("easel_runs_total", agent="name-0") > 0


@pytest.mark.parametrize(
    "volume", [Volume(messages=10_000), pytest.param(Volume(messages=1_000_000), marks=[pytest.mark.prove])]
)
def test_what_waits_is_read_by_an_index_however_much_is_stored(database_url: str, volume: Volume) -> None:
    tenant = "INSERT INTO tenants (id, name, created_at) VALUES (gen_random_uuid(), 'Busy', now()) RETURNING id"
    insert_volume(database_url, rows(database_url, tenant)[0][0], volume)
    plan, taken = asyncio.run(explain_backlog(database_url))
    assert faults(plan) == []
    assert taken < timeouts.ALIVE
    rows(database_url, "DROP INDEX ix_attachments_unfinished")
    plan, _ = asyncio.run(explain_backlog(database_url))
    assert faults(plan)


def test_however_often_somebody_asks_the_database_is_seldom_asked(
    monitored: Monitored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.worker.gauges.LOOK_SECONDS", 600.0)
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        asked.append(statement)

    engine = monitored.server.uvicorn.app.state.database.probe.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    seen = [monitored.scrape() for _ in range(5)]
    event.remove(engine, "before_cursor_execute", note)
    assert sum("pending_seconds" in statement for statement in asked) <= 1
    assert all("easel_images_pending" in one.families for one in seen)


async def explain_backlog(url: str) -> tuple[Any, float]:
    database = Database(url, pool_size=1)
    async with database.probe.begin() as connection:
        await connection.exec_driver_sql("SET LOCAL ROLE easel_identity")
        found = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {gauges.BACKLOG.text}")
        plan = found.scalar_one()[0]["Plan"]
    began = time.monotonic()
    await gauges.read_backlog(database)
    taken = time.monotonic() - began
    await database.close()
    return plan, taken


@pytest.mark.slow
def test_a_worker_alone_tells_its_health_and_its_metrics(database_url: str, provider_url: str, tmp_path: Path) -> None:
    port = free_port()
    with redis_server(tmp_path / "redis") as redis:
        settings = {"redis_url": redis.url, "metrics_port": port}
        with starting_easel("worker", database_url, provider_url, tmp_path / "worker", settings) as worker:
            worker.wait_until_ready()
            wait_until(lambda: _status(port, "/readyz") == 200)
            seen = scrape(port)
            assert seen.value("easel_worker_slots") == 20
            assert {"easel_images_pending", "easel_spool_bytes", "easel_runs"} <= set(seen.families)
            assert "easel_streams_open" not in seen.families
            redis.process.kill()
            wait_until(lambda: _status(port, "/readyz") == 503)  # what was found holds for a second
            assert _status(port, "/livez") == 200


def test_a_worker_is_not_ready_while_the_schema_is_behind(
    empty_database_url: str, provider_url: str, tmp_path: Path
) -> None:
    port = free_port()
    with running_server(empty_database_url, provider_url, tmp_path, metrics_port=port):
        answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=timeouts.ANSWER)
        assert answer.status_code == 503
        assert "just migrate" in answer.json()["detail"]
        # What the database cannot tell is left out, and what the process counts is there.
        families = scrape(port).families
        assert "easel_runs" in families
        assert "easel_runs_open" not in families


@pytest.mark.slow
def test_a_port_that_is_taken_is_told_in_a_sentence(database_url: str, provider_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {"redis_url": "redis://127.0.0.1:1", "metrics_port": port, "embedded_worker": False}
        with starting_easel("serve", database_url, provider_url, tmp_path / "api", settings) as easel:
            assert easel.process.wait(timeouts.PROCESS_START) == 1
            said = easel.log.read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"easel: METRICS_PORT={port} on METRICS_HOST=127.0.0.1 cannot be listened on (Address already in use):"
        " give each process on a machine a port of its own, or leave METRICS_PORT empty."
    )


def growth(monitored: Monitored, action: Callable[[], object]) -> Callable[..., float]:
    """By how much the series of a name and labels have grown with the action."""
    before = monitored.scrape()
    action()
    after = monitored.scrape()

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    return grown


def wait_for(monitored: Monitored, name: str, value: float, **labels: str) -> None:
    wait_until(lambda: monitored.scrape().value(name, **labels) == value)


def _status(port: int, path: str) -> int:
    """Not by httpx, whose replies are compared with the document of the API."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeouts.ANSWER)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status
