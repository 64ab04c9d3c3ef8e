"""The settings name a store's module: only that one is loaded, and a new one is one file."""

import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import app.storage
from app.db import now
from app.settings import Settings
from app.storage.keys import image_key, tenant_prefix
from app.storage.service import open_store
from app.storage.store import ObjectMissing, StorageUnavailable

TENANT = UUID("0198c0de-0000-7000-8000-000000000001")
ROOT = Path(__file__).resolve().parents[2]
LOADED = """
import sys
import app.main
from app.settings import Settings
from app.storage.service import open_store

clients = {"google.cloud.storage", "minio"}
open_store(Settings(_env_file=None, storage_provider="memory"))
print(*sorted(clients & sys.modules.keys()))
keys = {"minio_access_key": "key", "minio_secret_key": "secret"}
open_store(Settings(_env_file=None, storage_provider="minio", minio_endpoint="127.0.0.1:9000", **keys))
print(*sorted(clients & sys.modules.keys()))
"""
# All that a third storage needs beside its name in the settings.
SHELF = """
from app.storage.blocking import BlockingStore
from app.storage.store import ObjectMissing, StoredObject
from datetime import UTC, datetime


def open_store(settings):
    return Shelf("shelf")


class Shelf(BlockingStore):
    objects = {}

    def _prepare(self, create_bucket):
        pass

    def _put(self, key, data, mime_type):
        if mime_type == "image/gif":
            raise ConnectionResetError("with a signature in it")
        self.objects[key] = data

    def _get(self, key, part):
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key]

    def _size(self, key):
        return len(self._get(key, None))

    def _delete(self, key):
        self.objects.pop(key, None)

    def _list(self, prefix):
        yield StoredObject("not/a/key", 1, datetime.now(UTC))
        for key in sorted(self.objects):
            yield StoredObject(key, len(self.objects[key]), datetime.now(UTC))
"""


@pytest.mark.slow
def test_the_clients_of_other_stores_are_not_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, env={}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == ["", "minio"], done.stderr


async def test_a_third_store_is_one_file_and_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shelf.py").write_text(SHELF)
    monkeypatch.setattr(app.storage, "__path__", [*app.storage.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "app.storage.shelf", raising=False)
    # Not validated, as the Literal of the settings does not have the name.
    store = open_store(Settings().model_copy(update={"storage_provider": "shelf"}))
    key = image_key(TENANT, uuid4(), "png")
    await store.put(key, b"bytes", mime_type="image/png")
    assert await store.get(key) == b"bytes"
    assert [item.key async for item in store.list(tenant_prefix(TENANT))] == [key]
    assert (
        await store.link(key, filename="a.png", mime_type="image/png", inline=True, issued_at=now(), expires_in=300)
        is None
    )
    await store.delete(key)
    with pytest.raises(ObjectMissing):
        await store.get(key)
    with pytest.raises(StorageUnavailable, match="shelf") as caught:
        await store.put(key, b"bytes", mime_type="image/gif")
    assert "signature" not in str(caught.value)
    with pytest.raises(ValueError, match="not a key"):
        await store.get("../secret_key")
    await store.close()
