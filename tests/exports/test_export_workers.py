"""Who writes an archive: killed, stopped and hung workers, a store that is away, and what it all costs."""

import asyncio
import hashlib
import os
import signal
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import text

from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.db import Database, uuid7
from app.exports import archive
from app.exports.models import Export, ExportScope
from app.settings import Settings
from app.storage.keys import upload_key
from app.storage.memory import MemoryStore
from app.storage.service import open_store
from app.storage.store import Store
from tests import timeouts
from tests.app_server import ApiUser, AppServer, running_server
from tests.exports.archives import Archive, export, wait_for_export
from tests.processes import Processes, running_processes
from tests.results import Results
from tests.servers import Proxy, redis_server, s3_server
from tests.tables import rows

LEASE_SECONDS = 2
MEMORY_MB = 64

Json = dict[str, Any]


@dataclass
class Cluster:
    """One API, and workers that reach the store through `proxy`."""

    processes: Processes
    proxy: Proxy
    objects: Path
    data: Path
    url: str
    settings: Settings

    def worker(self, user: ApiUser) -> int:
        """One that is at work: it has written an archive of the user's own."""
        pid = self.processes.worker()
        wait_for_export(user, user.http.post("/v1/exports", json={"scope": "me"}).json()["id"])
        return pid

    def archives(self, export_id: str) -> list[Path]:
        return [path for path in self.objects.rglob("*.zip") if path.parent.name == export_id]


@pytest.fixture
def cluster(database_url: str, provider_url: str, tmp_path: Path) -> Generator[Cluster]:
    with (
        redis_server(tmp_path / "redis") as redis,
        s3_server(tmp_path / "s3") as s3,
        Proxy(s3.endpoint) as proxy,
    ):
        minio = {
            "storage_provider": "minio",
            "minio_endpoint": proxy.endpoint,
            "minio_access_key": s3.access_key,
            "minio_secret_key": s3.secret_key,
            "minio_secure": "false",
        }
        variables = {
            "DATABASE_URL": database_url,
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": provider_url,
            "REDIS_URL": redis.url,
            "EMBEDDED_WORKER": "false",
            "RUN_LEASE_SECONDS": str(LEASE_SECONDS),
            "LOG_LEVEL": "warning",
        }
        variables |= {name.upper(): value for name, value in minio.items()}
        with running_processes(tmp_path / "processes", variables) as processes:
            _, url = processes.api()
            settings = Settings.model_validate(minio | {"database_url": database_url})
            data = tmp_path / "processes" / "data"
            yield Cluster(processes, proxy, tmp_path / "s3" / "easel", data, url, settings)
            proxy.mode = "refuse"  # lets the threads go that still wait


async def store_images(cluster: Cluster, user: ApiUser, sizes: list[int]) -> dict[str, str]:
    """Rows and objects of so many bytes; id -> sha256."""
    tenant_id, found = UUID(user.signed_up["tenant"]["id"]), dict[str, str]()
    assert cluster.settings.database_url
    database = Database(cluster.settings.database_url.get_secret_value(), pool_size=1)
    store = open_store(cluster.settings)
    await store.prepare(create_bucket=True)
    made: list[Attachment] = []
    for size in sizes:
        data, object_id = os.urandom(size), uuid7()
        key = upload_key(tenant_id, object_id, "png")
        found[str(object_id)] = hashlib.sha256(data).hexdigest()
        made.append(
            Attachment(
                id=object_id,
                tenant_id=tenant_id,
                user_id=UUID(user.id),
                kind=AttachmentKind.UPLOAD,
                status=AttachmentStatus.STORED,
                filename="a.png",
                mime_type="image/png",
                size_bytes=size,
                sha256=found[str(object_id)],
                storage_key=key,
                variants=[],
            )
        )
        await store.put(key, data, mime_type="image/png")
    async with database.tenant(tenant_id) as session:
        session.add_all(made)
    await store.close()
    await database.close()
    return found


def hashes(found: Archive) -> dict[str, str]:
    """Of the originals, by id."""
    return {
        Path(entry["path"]).stem: entry["sha256"]
        for entry in found.manifest["files"]
        if entry["path"].startswith("objects/")
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
@pytest.mark.timeout(180)
def test_what_a_lost_worker_began_another_finishes(cluster: Cluster, database_url: str, number: signal.Signals) -> None:
    ada = ApiUser(cluster.url)
    stored = asyncio.run(store_images(cluster, ada, [1_000] * 20))
    lost = cluster.worker(ada)
    cluster.proxy.mode = "hang"
    asked = ada.http.post("/v1/exports", json={"scope": "tenant"}).json()
    wait_for_export(ada, asked["id"], "running")
    if number == signal.SIGKILL:
        cluster.processes.kill(lost)
    else:
        os.kill(lost, number)
    cluster.proxy.mode = "pass"
    cluster.processes.worker()
    done = wait_for_export(ada, asked["id"])
    found = Archive(ada.http.get(done["url"], headers={"Authorization": ""}).content)
    assert hashes(found) == stored
    assert done["sha256"] == hashlib.sha256(found.data).hexdigest()
    assert rows(database_url, "SELECT attempt FROM exports WHERE scope = 'tenant'") == [(2,)]
    if number == signal.SIGSTOP:
        os.kill(lost, signal.SIGCONT)
        time.sleep(LEASE_SECONDS)
    assert rows(database_url, "SELECT sha256 FROM exports WHERE scope = 'tenant'") == [(done["sha256"],)]
    again = ada.http.get(done["url"], headers={"Authorization": ""}).content
    assert hashlib.sha256(again).hexdigest() == done["sha256"]
    timeouts.wait_until(lambda: list((cluster.data / "exports").iterdir()) == [])
    # Its put may have reached the store meanwhile: that archive goes with the other one.
    assert "2" in {path.stem for path in cluster.archives(asked["id"])}
    rows(database_url, "UPDATE exports SET expires_at = now() RETURNING id")
    timeouts.wait_until(lambda: cluster.archives(asked["id"]) == [])
    ada.http.close()


@pytest.mark.slow
def test_a_store_that_is_away_delays_an_archive(cluster: Cluster, database_url: str) -> None:
    ada = ApiUser(cluster.url)
    stored = asyncio.run(store_images(cluster, ada, [1_000]))
    cluster.worker(ada)
    cluster.proxy.mode = "refuse"
    asked = ada.http.post("/v1/exports", json={"scope": "tenant"}).json()
    deadline = time.monotonic() + timeouts.PATIENCE
    while rows(database_url, "SELECT attempt FROM exports WHERE scope = 'tenant'") < [(2,)]:
        assert time.monotonic() < deadline, "it was not tried again"
        time.sleep(0.1)
    cluster.proxy.mode = "pass"
    done = wait_for_export(ada, asked["id"])
    assert hashes(Archive(ada.http.get(done["url"], headers={"Authorization": ""}).content)) == stored
    ada.http.close()


@pytest.mark.slow
def test_an_export_that_was_tried_too_often_has_failed(own_server: AppServer, database_url: str) -> None:
    ada = own_server.sign_up()
    done, _ = export(ada, "me")
    often = "UPDATE exports SET status = 'running', attempt = 10, lease_until = now(), size_bytes = NULL, sha256 = NULL"
    rows(database_url, often)
    failed = wait_for_export(ada, done["id"], "failed")
    assert (failed["url"], failed["sha256"], failed["size_bytes"]) == (None, None, None)
    assert ada.http.post("/v1/exports", json={"scope": "me"}).json()["id"] != done["id"]


@pytest.mark.timeout(120)
def test_a_worker_that_stops_releases_its_export(provider_url: str, database_url: str, tmp_path: Path) -> None:
    with s3_server(tmp_path / "s3") as s3, Proxy(s3.endpoint) as proxy:
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        settings: Json = {"storage_provider": "minio", "minio_endpoint": proxy.endpoint, **minio}
        with running_server(database_url, provider_url, tmp_path / "a", **settings) as server:
            ada = server.sign_up()
            ada.draw()
            proxy.mode = "hang"
            asked = ada.http.post("/v1/exports", json={"scope": "me"}).json()
            wait_for_export(ada, asked["id"], "running")
            server.uvicorn.drain()
            deadline = time.monotonic() + timeouts.DRAINED
            while rows(database_url, "SELECT lease_until > now() FROM exports") != [(False,)]:
                assert time.monotonic() < deadline, "it is still held"
                time.sleep(0.05)
            proxy.mode = "refuse"


async def test_an_original_that_is_gone_is_named_in_the_manifest(own_server: AppServer, database_url: str) -> None:
    ada = await asyncio.to_thread(own_server.sign_up)
    await asyncio.to_thread(ada.draw)
    ((key,),) = await asyncio.to_thread(rows, database_url, "SELECT storage_key FROM attachments")
    await cast(Store, own_server.uvicorn.app.state.store).delete(key)
    _, found = await asyncio.to_thread(export, ada, "me")
    (row,) = found.rows("attachments")
    assert found.manifest["missing"] == [row["path"]]
    assert (found.manifest["counts"]["objects"], found.manifest["counts"]["attachments"]) == (0, 1)
    assert row["path"] not in found.names()


async def test_rows_are_those_of_one_moment(
    own_server: AppServer, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation that begins while rows are read is in no file, not in half of them."""
    ada = await asyncio.to_thread(own_server.sign_up)
    read, begun = archive.batches, threading.Event()

    async def read_and_begin(*given: Any) -> Any:
        async for rows_of_it in read(*given):
            yield rows_of_it
        if not begun.is_set():
            begun.set()
            await asyncio.to_thread(ada.draw, "Draw a red house")

    monkeypatch.setattr(archive, "batches", read_and_begin)
    asked = Export(
        id=uuid7(), tenant_id=UUID(ada.signed_up["tenant"]["id"]), user_id=UUID(ada.id), scope=ExportScope.TENANT
    )
    database, file = Database(database_url, pool_size=2), tmp_path / "archive.zip"
    with file.open("w+b") as opened:
        await archive.write(database, MemoryStore(), asked, opened, tmp_path)
    await database.close()
    counts = Archive(file.read_bytes()).manifest["counts"]
    assert [counts[name] for name in ("conversations", "messages", "runs", "attachments", "usage")] == [0] * 5
    assert rows_in(database_url, "messages") == 2


def rows_in(database_url: str, table: str) -> int:
    async def count() -> int:
        database = Database(database_url, pool_size=1)
        async with database.engine.connect() as connection:
            found = await connection.scalar(text(f"SELECT count(*) FROM {table}"))  # noqa: S608 - a test's own
        await database.close()
        return int(found or 0)

    with_loop: list[int] = []
    thread = threading.Thread(target=lambda: with_loop.append(asyncio.run(count())))
    thread.start()
    thread.join()
    return with_loop[0]


# Each of the large ones alone would exceed what an archive may occupy in memory.
@pytest.mark.parametrize(
    ("images", "large"), [(100, 1), pytest.param(2_000, 4, marks=[pytest.mark.prove, pytest.mark.timeout(900)])]
)
@pytest.mark.timeout(300)
def test_an_archive_costs_no_more_memory_however_large_it_is(
    cluster: Cluster, images: int, large: int, results: Results
) -> None:
    ada = ApiUser(cluster.url)
    warm = asyncio.run(store_images(cluster, ada, [1_000]))
    worker = cluster.worker(ada)
    stored = warm | asyncio.run(store_images(cluster, ada, [60_000] * images + [80 * 1024**2] * large))
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    before = memory_mb(worker, "VmRSS")
    began = time.monotonic()
    asked = ada.http.post("/v1/exports", json={"scope": "tenant"}).json()
    done = wait_for_export(ada, asked["id"], seconds=600)
    took = time.monotonic() - began
    grown = memory_mb(worker, "VmHWM") - before
    (path,) = cluster.archives(asked["id"])
    assert hashes(Archive(path.read_bytes())) == stored
    size = done["size_bytes"] / 1e6
    kept = f"{size / took:.0f} MB/s, memory +{grown:.0f} MiB of {MEMORY_MB}, {len(stored)} hashes equal"
    results(21, "export", tried=f"{len(stored)} images, {size:.0f} MB", kept=kept)
    assert grown <= MEMORY_MB
    ada.http.close()


def memory_mb(pid: int, what: str) -> float:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) / 1024
