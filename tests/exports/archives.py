"""Asking for an export, and what is in its archive."""

import json
import time
import zipfile
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any, cast

import httpx

from tests import timeouts
from tests.app_server import ApiUser

Json = dict[str, Any]


@dataclass(frozen=True)
class Archive:
    data: bytes

    @cached_property
    def zip(self) -> zipfile.ZipFile:
        opened = zipfile.ZipFile(BytesIO(self.data))
        assert opened.testzip() is None
        return opened

    @property
    def manifest(self) -> Json:
        return cast(Json, json.loads(self.read("manifest.json")))

    def names(self) -> list[str]:
        return self.zip.namelist()

    def read(self, path: str) -> bytes:
        return self.zip.read(path)

    def rows(self, name: str) -> list[Json]:
        return [json.loads(line) for line in self.read(f"{name}.jsonl").splitlines()]

    def text(self) -> str:
        """All but the originals."""
        return "".join(self.read(path).decode() for path in self.names() if not path.startswith("objects/"))


def export(user: ApiUser, scope: str) -> tuple[Json, Archive]:
    """A completed export and its archive."""
    answer = user.http.post("/v1/exports", json={"scope": scope})
    assert answer.status_code == 202, answer.text
    done = wait_for_export(user, answer.json()["id"])
    return done, Archive(httpx.get(done["url"], timeout=60).raise_for_status().content)


def wait_for_export(user: ApiUser, export_id: str, status: str = "completed", *, seconds: float | None = None) -> Json:
    deadline = time.monotonic() + (seconds or timeouts.PATIENCE)
    while True:
        answer = user.http.get(f"/v1/exports/{export_id}")
        assert answer.status_code == 200, answer.text
        found = cast(Json, answer.json())
        if found["status"] == status:
            return found
        assert found["status"] in ("queued", "running"), found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
