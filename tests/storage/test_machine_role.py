"""S3 without static keys: a server of credentials as pods and tasks have one, and a real S3 server that takes them."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.db import now
from app.settings import Settings, SettingsError, load_settings
from app.storage.keys import image_key
from app.storage.service import open_store
from app.storage.store import StorageUnavailable, Store
from tests.servers import S3Server, free_port, s3_server

VARIABLE = "AWS_CONTAINER_CREDENTIALS_FULL_URI"


@dataclass
class Role:
    """What the credentials' server answers, and how often it was asked."""

    keys: tuple[str, str]
    lasts: timedelta = timedelta(hours=6)
    status: int = 200
    asked: list[str] = field(default_factory=list)


@contextmanager
def role_server(role: Role) -> Generator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            role.asked.append(self.path)
            access_key, secret_key = role.keys
            expires = (datetime.now(UTC) + role.lasts).strftime("%Y-%m-%dT%H:%M:%SZ")
            answer = {"AccessKeyId": access_key, "SecretAccessKey": secret_key, "Token": "t", "Expiration": expires}
            body = json.dumps(answer).encode()
            self.send_response(role.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/role"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def role(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Generator[Role]:
    role = Role((s3.access_key, s3.secret_key))
    with role_server(role) as url:
        monkeypatch.setenv(VARIABLE, url)
        yield role


def opened(s3: S3Server) -> Store:
    bucket = f"easel-{uuid4().hex[:12]}"
    place = {"storage_provider": "minio", "minio_endpoint": s3.endpoint, "minio_secure": False}
    return open_store(Settings.model_validate(place | {"storage_bucket": bucket}))


async def linked(store: Store, key: str) -> str:
    """A link of one minute."""
    link = await store.link(key, filename="a.png", mime_type="image/png", inline=True, issued_at=now(), expires_in=60)
    assert link is not None
    return link


async def test_objects_are_written_read_and_linked_with_what_the_machine_gives(s3: S3Server, role: Role) -> None:
    store = opened(s3)
    try:
        await store.prepare(create_bucket=True)
        key = image_key(uuid4(), uuid4(), "png")
        await store.put(key, b"pixels", mime_type="image/png")
        assert await store.get(key) == b"pixels"
        async with httpx.AsyncClient() as browser:
            assert (await browser.get(await linked(store, key))).content == b"pixels"
        assert role.asked == ["/role"]
    finally:
        await store.close()


async def test_credentials_are_exchanged_before_a_link_would_end_with_them(
    s3: S3Server, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.machine_role.RETRY_AFTER", timedelta(0))
    role.lasts = timedelta(minutes=9)
    store = opened(s3)
    try:
        await linked(store, image_key(uuid4(), uuid4(), "png"))
        await linked(store, image_key(uuid4(), uuid4(), "png"))
        # Where no new ones are to be had, the old ones serve as long as they are valid.
        role.status = 500
        await linked(store, image_key(uuid4(), uuid4(), "png"))
        assert len(role.asked) > 2
    finally:
        await store.close()


async def test_a_machine_without_a_role_is_told_what_to_set(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{free_port()}/role")
    store = opened(s3)
    try:
        with pytest.raises(StorageUnavailable, match=r"gives no role .* set MINIO_ACCESS_KEY and MINIO_SECRET_KEY"):
            await store.prepare(create_bucket=False)
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("endpoint", "variable", "missing"),
    [
        ("s3.eu-central-1.amazonaws.com", None, None),
        ("https://s3.cn-north-1.amazonaws.com.cn", None, None),
        ("s3.example.com", VARIABLE, None),
        ("s3.example.com", "AWS_WEB_IDENTITY_TOKEN_FILE", None),
        ("s3.example.com", None, "MINIO_ACCESS_KEY"),
        ("amazonaws.com.example.com", None, "MINIO_ACCESS_KEY"),
    ],
)
def test_keys_are_missed_where_no_role_can_stand_in(
    endpoint: str, variable: str | None, missing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_PROVIDER", "minio")
    monkeypatch.setenv("MINIO_ENDPOINT", endpoint)
    if variable is not None:
        monkeypatch.setenv(variable, "http://127.0.0.1/role")
    if missing is None:
        assert load_settings().minio_by_role
        monkeypatch.setenv("MINIO_ACCESS_KEY", "half of a pair")
        missing = "MINIO_SECRET_KEY"
    with pytest.raises(SettingsError, match=missing):
        load_settings()
