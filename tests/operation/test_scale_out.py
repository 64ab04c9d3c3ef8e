"""An API without a worker, and a worker of its own, on one Postgres, one Redis and one S3 server."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app_server import kinds, one, running_server
from tests.servers import REDIS_SERVERS, redis_server, s3_server

BIN = Path(sys.executable).parent


@pytest.mark.prove
@pytest.mark.parametrize("kind", REDIS_SERVERS)
def test_a_worker_process_executes_what_the_api_accepts(
    database_url: str, provider_url: str, tmp_path: Path, kind: str
) -> None:
    for name in ("redis", "s3", "api"):
        (tmp_path / name).mkdir()
    with redis_server(tmp_path / "redis", kind=kind) as redis, s3_server(tmp_path / "s3") as s3:
        storage: dict[str, Any] = {
            "storage_provider": "minio",
            "minio_endpoint": s3.endpoint,
            "minio_access_key": s3.access_key,
            "minio_secret_key": s3.secret_key,
            "minio_secure": False,
            "redis_url": redis.url,
            "embedded_worker": False,
        }
        with running_server(database_url, provider_url, tmp_path / "api", **storage) as server:
            variables = {name.upper(): str(value) for name, value in storage.items()}
            provider = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider_url, "DATABASE_URL": database_url}
            worker = subprocess.Popen(
                [BIN / "easel", "worker"],
                cwd=tmp_path,
                env={"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path / "worker"), **variables, **provider},
                stderr=subprocess.DEVNULL,
            )
            try:
                events = server.sign_up().draw("Draw a green robot")
            finally:
                worker.terminate()
                status = worker.wait(20)
        assert kinds(events)[-1] == "run.completed"
        attachment = one(events, "attachment.created")["attachment"]
        assert s3.endpoint in attachment["url"]
        assert hashlib.sha256(httpx.get(attachment["url"]).content).hexdigest() == attachment["sha256"]
        assert status == 0
