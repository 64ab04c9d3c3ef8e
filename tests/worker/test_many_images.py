"""Promise 34: a response with very many images loses none of them, and keeps no other run waiting."""

import hashlib
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import timeouts
from tests.app_server import AppServer, Event, kinds, running_server
from tests.results import Results
from tests.servers import s3_server
from tests.tables import rows

LEASE_SECONDS = 5.0
SAMPLES = 5


@pytest.fixture
def s3_backed(database_url: str, provider_url: str, tmp_path: Path) -> Generator[AppServer]:
    with s3_server(tmp_path / "s3") as s3:
        minio = {"minio_access_key": s3.access_key, "minio_secret_key": s3.secret_key, "minio_secure": False}
        settings: dict[str, Any] = {"storage_provider": "minio", "minio_endpoint": s3.endpoint, **minio}
        with running_server(
            database_url, provider_url, tmp_path, run_lease_seconds=LEASE_SECONDS, **settings
        ) as server:
            yield server


@pytest.mark.parametrize("count", [45, pytest.param(1_000, marks=[pytest.mark.prove, pytest.mark.timeout(600)])])
def test_every_image_of_a_response_is_stored_while_other_runs_go_on(
    s3_backed: AppServer, database_url: str, count: int, results: Results
) -> None:
    many, other = s3_backed.sign_up("Many"), s3_backed.sign_up("Other")
    asked = f"Draw a house [offline: images={count}] [offline: slow=0]"
    run = many.start(asked, agent_key="designer", image={"quality": "low", "size": "1024x640"})
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(many.events, run["id"])
        slowest = 0.0
        while not reading.done():
            began = time.monotonic()
            events = other.draw()
            slowest = max(slowest, time.monotonic() - began)
            assert kinds(events).count("attachment.created") == 1
        assert_all_stored(reading.result(), count)
    stored = rows(
        database_url, "SELECT status, count(*) FROM attachments WHERE run_id = :run GROUP BY 1", {"run": run["id"]}
    )
    kept = sum(number for status, number in stored if status == "stored")
    results(34, "many images", tried=f"{count} in a response", kept=f"{kept}, another's run took {slowest:.1f} s")
    assert kept == count
    assert rows(database_url, "SELECT max(attempt) FROM runs") == [(1,)]
    assert slowest < timeouts.MEANWHILE


def assert_all_stored(events: list[Event], count: int) -> None:
    assert events[-1]["type"] == "run.completed"
    created = [event["attachment"] for event in events if event["type"] == "attachment.created"]
    assert len({made["sha256"] for made in created}) == len(created) == count
    for made in created[:: count // SAMPLES]:
        assert hashlib.sha256(httpx.get(made["url"]).content).hexdigest() == made["sha256"]
