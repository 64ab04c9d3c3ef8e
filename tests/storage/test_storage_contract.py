"""One contract for every store, against real servers."""

import asyncio
import os
import stat
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from app.db import now
from app.settings import Settings
from app.storage.keys import image_key, is_key, preview_key, preview_prefix, tenant_prefix, upload_key
from app.storage.memory import FileStore
from app.storage.service import open_store
from app.storage.store import ObjectMissing, StorageError, StorageUnavailable, Store
from tests.servers import GcsServer, Proxy, ProxyMode, S3Server, free_port, gcs_server, s3_server

TENANT = UUID("0198c0de-0000-7000-8000-000000000001")
STRANGER = UUID("0198c0de-0000-7000-8000-000000000002")
THREE_MB = os.urandom(3 * 1024 * 1024)


@dataclass(frozen=True)
class Backend:
    """Where a store's server listens (`endpoint`, host:port; "" for memory) and the settings that lead there."""

    endpoint: str
    settings: dict[str, Any]

    def open(self, *, endpoint: str | None = None, **changes: object) -> Store:
        at = endpoint or self.endpoint
        place = {"minio_endpoint": at, "storage_emulator_host": at, "storage_bucket": f"easel-{uuid4().hex[:12]}"}
        return open_store(Settings.model_validate(place | self.settings | changes))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Generator[GcsServer]:
    with gcs_server(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def minio(s3: S3Server) -> Backend:
    return Backend(
        s3.endpoint,
        {
            "storage_provider": "minio",
            "minio_access_key": s3.access_key,
            "minio_secret_key": s3.secret_key,
            "minio_secure": False,
        },
    )


@pytest.fixture(params=["memory", "memory-files", "minio", "gcs"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return Backend("", {"database_url": "postgresql://127.0.0.1/unused"})
    if request.param == "memory-files":
        return Backend("", {"data_dir": tmp_path, "database_url": None})
    return _remote(request)


@pytest.fixture(params=["minio", "gcs"])
def remote(request: pytest.FixtureRequest) -> Backend:
    return _remote(request)


def _remote(request: pytest.FixtureRequest) -> Backend:
    if request.param == "minio":
        return request.getfixturevalue("minio")
    server: GcsServer = request.getfixturevalue("gcs")
    return Backend(server.url.removeprefix("http://"), {"storage_provider": "gcs", "gcs_project_id": "easel-tests"})


@pytest.fixture
async def store(backend: Backend) -> AsyncGenerator[Store]:
    opened = backend.open()
    await opened.prepare(create_bucket=True)
    yield opened
    await opened.close()


# Above what S3's SDK would upload in parts, and Google's in one request.
@pytest.mark.parametrize("data", [b"\x00", THREE_MB, THREE_MB * 3], ids=["1 B", "3 MB", "9 MB"])
async def test_an_object_is_read_as_it_was_put(store: Store, data: bytes) -> None:
    key = image_key(TENANT, uuid4(), "png")
    await store.put(key, data, mime_type="image/png")
    assert await store.get(key) == data


async def test_a_part_is_read_as_it_was_put_and_the_size_is_known(store: Store) -> None:
    key = image_key(TENANT, uuid4(), "png")
    await store.put(key, THREE_MB, mime_type="image/png")
    size = len(THREE_MB)
    assert await store.size(key) == size
    for part in (range(1), range(1_000, 1_010), range(size - 1, size), range(size)):
        assert await store.get(key, part) == THREE_MB[part.start : part.stop]


async def test_one_byte_of_a_large_object_costs_one_byte(remote: Backend) -> None:
    with Proxy(remote.endpoint) as proxy:
        store = remote.open(endpoint=proxy.endpoint)
        await store.prepare(create_bucket=True)
        key = image_key(TENANT, uuid4(), "png")
        data = THREE_MB * 17
        await store.put(key, data, mime_type="image/png")
        proxy.reset_after = 64 * 1024  # of a connection, both ways
        proxy.mode = "reset_mid"
        assert await store.get(key, range(len(data) - 1, len(data))) == data[-1:]
        assert await store.size(key) == len(data)
        proxy.mode = "pass"
        await store.close()


# The last one S3 gets in parts.
@pytest.mark.parametrize("data", [b"\x00", THREE_MB * 3, THREE_MB * 24], ids=["1 B", "9 MB", "72 MB"])
async def test_a_file_is_put_like_its_bytes(store: Store, tmp_path: Path, data: bytes) -> None:
    key = upload_key(TENANT, uuid4(), "webp")
    (tmp_path / "upload").write_bytes(data)
    await store.put(key, tmp_path / "upload", mime_type="image/webp")
    (tmp_path / "upload").unlink()
    assert await store.get(key) == data
    if link := await store.link(
        key, filename="a.webp", mime_type="image/webp", inline=True, issued_at=now(), expires_in=300
    ):
        assert (await _ask("GET", link)).content == data


async def test_a_second_put_replaces_the_first(store: Store) -> None:
    key = image_key(TENANT, uuid4(), "png")
    await store.put(key, b"first", mime_type="image/png")
    await store.put(key, b"second", mime_type="image/png")
    assert await store.get(key) == b"second"
    assert [item.size_bytes async for item in store.list(key)] == [6]


async def test_an_object_that_never_was_is_missing(store: Store) -> None:
    key = upload_key(TENANT, uuid4(), "png")
    for asked in (store.get(key), store.get(key, range(1)), store.size(key)):
        with pytest.raises(ObjectMissing):
            await asked


async def test_a_deleted_object_is_gone_and_can_be_deleted_again(store: Store) -> None:
    key = image_key(TENANT, uuid4(), "png")
    await store.put(key, b"bytes", mime_type="image/png")
    await store.delete(key)
    await store.delete(key)
    with pytest.raises(ObjectMissing):
        await store.get(key)
    assert [item async for item in store.list(tenant_prefix(TENANT))] == []


async def test_a_list_never_shows_a_strangers_objects(store: Store) -> None:
    run_id = uuid4()
    preview = preview_key(TENANT, run_id, "ig_1/../../x", 0, "png")
    mine = [image_key(TENANT, uuid4(), "png"), upload_key(TENANT, uuid4(), "webp"), preview]
    for key in [*mine, image_key(STRANGER, uuid4(), "png")]:
        await store.put(key, b"12345", mime_type="image/png")
    found = [item async for item in store.list(tenant_prefix(TENANT))]
    assert [item async for item in store.list(tenant_prefix(TENANT), deleted=True)] == found
    assert sorted(item.key for item in found) == sorted(mine)
    assert {item.size_bytes for item in found} == {5}
    assert all(abs(datetime.now(UTC) - item.modified_at) < timedelta(minutes=1) for item in found)
    assert [item.key async for item in store.list(preview_prefix(TENANT, run_id))] == [preview]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../secret_key",
        f"t/{TENANT}/images/../../../secret_key",
        f"t/{TENANT}/images/{STRANGER}.png/../x",
        f"t/{TENANT}/images/{STRANGER}.png\n",
        f"t/{TENANT}/images/{STRANGER}.PNG",
        f"t/{TENANT}/images/{STRANGER}.png\x00",
        f"T/{TENANT}/images/{STRANGER}.png",
        f"t/{TENANT}\\images\\{STRANGER}.png",
    ],
)
async def test_a_foreign_key_is_rejected(store: Store, key: str) -> None:
    assert not is_key(key)
    for call in [*_calls(store, key)[:5], lambda: _link(store, key)]:
        with pytest.raises(ValueError, match="not a key"):
            await call()


async def test_a_hostile_prefix_lists_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text("x")
    assert [item async for item in store.list("../")] == []


async def test_a_link_serves_the_bytes_under_the_pinned_type_and_name(minio: Backend) -> None:
    store, key = await _store_with_object(minio)
    inline = await _link(store, key, filename="Ein schöner „Bär“.webp", mime_type="image/webp", inline=True)
    answer = await _ask("GET", inline)
    assert (answer.status_code, answer.content) == (200, THREE_MB)
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-disposition"] == (
        'inline; filename="Ein sch_ner _B_r_.webp"; '
        "filename*=UTF-8''Ein%20sch%C3%B6ner%20%E2%80%9EB%C3%A4r%E2%80%9C.webp"
    )
    download = await _ask("GET", await _link(store, key, filename="a.svg", mime_type="image/svg+xml", inline=False))
    assert download.headers["content-disposition"] == 'attachment; filename="a.svg"'
    await store.close()


async def test_a_link_reads_one_object_and_nothing_else(minio: Backend) -> None:
    store, key = await _store_with_object(minio)
    other = image_key(STRANGER, uuid4(), "png")
    await store.put(other, b"theirs", mime_type="image/png")
    link = await _link(store, key)
    rejected = [
        await _ask("PUT", link),
        await _ask("DELETE", link),
        await _ask("GET", link.replace(key, other)),
        await _ask("GET", link.replace("image%2Fpng", "text%2Fhtml")),
        await _ask("GET", link.replace("X-Amz-Expires=300", "X-Amz-Expires=3000")),
        await _ask("GET", link.partition("?")[0]),
    ]
    assert [answer.status_code // 100 for answer in rejected] == [4] * len(rejected)
    assert await store.get(key) == THREE_MB
    await store.close()


@pytest.mark.slow
async def test_a_link_ends_in_time(minio: Backend) -> None:
    store, key = await _store_with_object(minio)
    link = await _link(store, key, expires_in=1)
    await asyncio.sleep(2.1)
    assert (await _ask("GET", link)).status_code in {400, 403}
    await store.close()


async def test_links_lead_to_the_public_endpoint_without_asking_it(minio: Backend) -> None:
    public = f"https://images.example:{free_port()}"
    store = minio.open(minio_public_endpoint=public)
    assert (await _link(store, image_key(TENANT, uuid4(), "png"))).startswith(f"{public}/easel-")
    await store.close()


@pytest.mark.parametrize("backend", ["memory", "memory-files", "gcs"], indirect=True)
async def test_a_store_without_a_signing_key_gives_no_link(store: Store) -> None:
    key = image_key(TENANT, uuid4(), "png")
    assert (
        await store.link(key, filename="a.png", mime_type="image/png", inline=True, issued_at=now(), expires_in=300)
        is None
    )


async def test_a_missing_bucket_is_named_with_the_fix_and_made_only_when_asked(remote: Backend) -> None:
    store = remote.open()
    key = image_key(TENANT, uuid4(), "png")
    with pytest.raises(StorageUnavailable, match=r"does not exist at .*: create it, or correct"):
        await store.prepare(create_bucket=False)
    for call in _calls(store, key)[:2]:  # a missing bucket must not count as missing objects
        with pytest.raises(StorageUnavailable, match="does not exist"):
            await call()
    await asyncio.gather(store.prepare(create_bucket=True), store.prepare(create_bucket=True))
    await store.prepare(create_bucket=False)
    await store.close()


# 30 calls are three times as many as there are threads: those that wait for one must fail in time as well.
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "times", "within"), [("hang", 6, 10.0), ("refuse", 1, 2.5)])
async def test_a_dead_server_is_reported_in_time(remote: Backend, mode: ProxyMode, times: int, within: float) -> None:
    with Proxy(remote.endpoint, mode=mode) as proxy:
        store = remote.open(endpoint=proxy.endpoint)
        calls = _calls(store, image_key(TENANT, uuid4(), "png")) * times
        started = time.monotonic()
        outcomes = await asyncio.gather(*(call() for call in calls), return_exceptions=True)
        took = time.monotonic() - started
        await store.close()
        proxy.mode = "refuse"  # lets the threads go that still wait
    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * len(calls)
    assert took < within


async def test_nobody_listening_is_reported_at_once(remote: Backend) -> None:
    store = remote.open(endpoint=f"127.0.0.1:{free_port()}")
    started = time.monotonic()
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        await store.prepare(create_bucket=True)
    assert time.monotonic() - started < 2.5
    await store.close()


async def test_a_connection_reset_in_the_middle_leaves_the_old_object(remote: Backend) -> None:
    with Proxy(remote.endpoint) as proxy:
        store = remote.open(endpoint=proxy.endpoint)
        await store.prepare(create_bucket=True)
        key = image_key(TENANT, uuid4(), "png")
        await store.put(key, b"old", mime_type="image/png")
        proxy.reset_after = 1024 * 1024
        proxy.mode = "reset_mid"
        with pytest.raises(StorageUnavailable):
            await store.put(key, THREE_MB, mime_type="image/png")
        proxy.mode = "pass"
        assert await store.get(key) == b"old"
        await store.put(key, THREE_MB, mime_type="image/png")
        proxy.reset_after = 1000  # Google's SDK resumes a broken download, and would get through with larger bites
        proxy.mode = "reset_mid"
        with pytest.raises(StorageUnavailable):
            await store.get(key)
        await store.close()


async def test_a_call_whose_connection_breaks_is_tried_once_more(remote: Backend) -> None:
    with Proxy(remote.endpoint) as proxy:
        store = remote.open(endpoint=proxy.endpoint)
        await store.prepare(create_bucket=True)
        proxy.reset_after, proxy.resets_left = 100, 1
        proxy.mode = "reset_mid"
        await store.put(image_key(TENANT, uuid4(), "png"), b"bytes", mime_type="image/png")
        assert proxy.resets_left == 0
        await store.close()


async def test_errors_quote_no_secret_and_no_signature(minio: Backend) -> None:
    secret = "canary-secret-that-must-not-show"
    store = minio.open(minio_secret_key=secret)
    for call in _calls(store, image_key(TENANT, uuid4(), "png")):
        with pytest.raises(StorageError) as caught:
            await call()
        assert "MINIO_SECRET_KEY" in str(caught.value)
        text = "".join(traceback.format_exception(caught.value))
        assert secret not in text
        assert "Signature=" not in text
    await store.close()


async def test_two_processes_share_the_files(tmp_path: Path) -> None:
    directory = tmp_path / "objects"
    one, other = FileStore(directory), FileStore(directory)
    key = image_key(TENANT, uuid4(), "png")
    await one.put(key, b"bytes", mime_type="image/png")
    assert await other.get(key) == b"bytes"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [path.name for path in directory.rglob("*") if path.is_file()] == [Path(key).name]
    await asyncio.gather(one.close(), other.close())


async def test_an_unusable_directory_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("a file where the directory should be")
    store = FileStore(tmp_path / "objects")
    for call in _calls(store, image_key(TENANT, uuid4(), "png"))[:2]:
        with pytest.raises(StorageUnavailable):
            await call()
    with pytest.raises(StorageUnavailable, match="DATA_DIR"):
        await store.prepare(create_bucket=False)
    await store.close()


async def _store_with_object(backend: Backend) -> tuple[Store, str]:
    store = backend.open()
    await store.prepare(create_bucket=True)
    key = image_key(TENANT, uuid4(), "png")
    await store.put(key, THREE_MB, mime_type="image/png")
    return store, key


async def _link(
    store: Store,
    key: str,
    *,
    filename: str = "a.png",
    mime_type: str = "image/png",
    inline: bool = True,
    expires_in: int = 300,
) -> str:
    link = await store.link(
        key, filename=filename, mime_type=mime_type, inline=inline, issued_at=now(), expires_in=expires_in
    )
    assert link
    return link


async def _ask(method: str, link: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.request(method, link, content=b"overwritten" if method == "PUT" else None)


def _calls(store: Store, key: str) -> list[Callable[[], Awaitable[object]]]:
    """Everything that asks the server; the first five name the key."""

    async def listed() -> object:
        return [item async for item in store.list(tenant_prefix(TENANT))]

    return [
        lambda: store.get(key),
        lambda: store.put(key, b"bytes", mime_type="image/png"),
        lambda: store.delete(key),
        lambda: store.put(key, Path(__file__), mime_type="image/png"),
        lambda: store.size(key),
        listed,
        lambda: store.prepare(create_bucket=False),
    ]
