"""Hundreds sign in at the same moment: each is answered soon, and nobody else notices."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from tests import timeouts
from tests.app_server import PASSWORD, ApiUser
from tests.floods import Flood, sign_in_repeatedly
from tests.processes import running_processes
from tests.results import Results
from tests.waiting import queued

POOL = 5
SECONDS = 3.0


@pytest.fixture
def service(database_url: str, provider_url: str, tmp_path: Path) -> Generator[tuple[ApiUser, int]]:
    """A user of an API that hashes passwords as production does, with few connections to the database; its process."""
    variables = {
        "DATABASE_URL": database_url,
        "DATABASE_POOL_SIZE": str(POOL),
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": provider_url,
    }
    with running_processes(tmp_path / "api", variables) as processes:
        pid, url = processes.api()
        user = ApiUser(url, "Ada's")
        yield user, pid
        user.http.close()


@pytest.mark.slow
async def test_sign_ins_hold_no_connection_and_do_not_pile_up(service: tuple[ApiUser, int]) -> None:
    await keep_signing_in(*service, at_once=30)


@pytest.mark.prove
async def test_a_hundred_sign_ins_at_once(service: tuple[ApiUser, int], results: Results) -> None:
    idle, busy, answers = await keep_signing_in(*service, at_once=100)
    results(
        27,
        "sign-ins and sign-ups at once",
        tried=f"100 at a time, {sum(answers.values())} in {SECONDS:.0f} s",
        kept=f"`/v1/me` p50 {idle * 1000:.1f} -> {busy * 1000:.1f} ms, 0 x 503 on `/readyz`, {answers['429']} x 429",
    )


async def keep_signing_in(ada: ApiUser, pid: int, at_once: int) -> tuple[float, float, Counter[str]]:
    """The median of `/v1/me` before and meanwhile, and how the others were answered."""
    many = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=ada.base_url, timeout=30, headers=ada.http.headers) as member,
        httpx.AsyncClient(base_url=ada.base_url, timeout=30, limits=many) as anyone,
    ):
        idle = await time_requests(member, pid, "/v1/me", 0.5)
        storm = Flood(ada.base_url, PASSWORD, time.monotonic() + SECONDS)
        # One in two signs up instead. Who has one of the 20 places asks again before those who were refused, so ten
        # sign-ins, which ask the database first, get theirs before sign-ups come.
        tasks = [asyncio.create_task(sign_in_repeatedly(storm, anyone, "/v1/tokens")) for _ in range(10)]
        await asyncio.sleep(0.1)
        paths = ["/v1/signup"] * (at_once // 2) + ["/v1/tokens"] * (at_once // 2 - len(tasks))
        tasks += [asyncio.create_task(sign_in_repeatedly(storm, anyone, path)) for path in paths]
        await asyncio.sleep(0.2)
        busy, ready = await asyncio.gather(
            time_requests(member, pid, "/v1/me", SECONDS), time_requests(member, pid, "/readyz", SECONDS)
        )
        await asyncio.gather(*tasks)
    assert {"201", "401"} <= set(storm.statuses) <= {"201", "401", "429"}
    assert statistics.median(busy) <= 3 * timeouts.SCALE * statistics.median(idle)
    assert max(ready) < timeouts.ALIVE
    return statistics.median(idle), statistics.median(busy), storm.statuses


async def time_requests(client: httpx.AsyncClient, pid: int, path: str, seconds: float) -> list[float]:
    """Without the time for which the service's loop or this one stood in the queue for a processor."""
    took: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        waited, began = queued(pid), time.monotonic()
        answer = await client.get(path)
        took.append(max(time.monotonic() - began - (queued(pid) - waited), 0.0))
        assert answer.status_code == 200
        await asyncio.sleep(0.01)
    return took
