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
from tests.processes import running_processes
from tests.results import Results

POOL = 5
SECONDS = 3.0


@pytest.fixture
def ada(database_url: str, provider_url: str, tmp_path: Path) -> Generator[ApiUser]:
    """A user of an API that hashes passwords as production does, with few connections to the database."""
    variables = {
        "DATABASE_URL": database_url,
        "DATABASE_POOL_SIZE": str(POOL),
        "OPENAI_API_KEY": "sk-test",
        "OPENAI_BASE_URL": provider_url,
    }
    with running_processes(tmp_path / "api", variables) as processes:
        _, url = processes.api()
        user = ApiUser(url, "Ada's")
        yield user
        user.http.close()


async def test_sign_ins_hold_no_connection_and_do_not_pile_up(ada: ApiUser) -> None:
    await keep_signing_in(ada, at_once=30)


@pytest.mark.prove
async def test_a_hundred_sign_ins_at_once(ada: ApiUser, results: Results) -> None:
    idle, busy, answers = await keep_signing_in(ada, at_once=100)
    results(
        27,
        "sign-ins and sign-ups at once",
        tried=f"100 at a time, {sum(answers.values())} in {SECONDS:.0f} s",
        kept=f"`/v1/me` p50 {idle * 1000:.1f} -> {busy * 1000:.1f} ms, 0 x 503 on `/readyz`, {answers[429]} x 429",
    )


async def keep_signing_in(ada: ApiUser, at_once: int) -> tuple[float, float, Counter[int]]:
    """The median of `/v1/me` before and meanwhile, and how the others were answered."""
    many = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=ada.base_url, timeout=30, headers=ada.http.headers) as member,
        httpx.AsyncClient(base_url=ada.base_url, timeout=30, limits=many) as anyone,
    ):
        idle = await time_requests(member, "/v1/me", 0.5)
        storm = [asyncio.create_task(sign_in_repeatedly(anyone, number)) for number in range(at_once)]
        await asyncio.sleep(0.2)
        busy, ready = await asyncio.gather(
            time_requests(member, "/v1/me", SECONDS), time_requests(member, "/readyz", SECONDS)
        )
        answers = sum(await asyncio.gather(*storm), Counter[int]())
    assert set(answers) == {201, 401, 429}
    assert statistics.median(busy) <= 3 * timeouts.SCALE * statistics.median(idle)
    assert max(ready) < timeouts.ALIVE
    return statistics.median(idle), statistics.median(busy), answers


async def time_requests(client: httpx.AsyncClient, path: str, seconds: float) -> list[float]:
    took: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        answer = await client.get(path)
        took.append(time.monotonic() - began)
        assert answer.status_code == 200
        await asyncio.sleep(0.01)
    return took


async def sign_in_repeatedly(client: httpx.AsyncClient, number: int) -> Counter[int]:
    """With addresses that are unknown, which takes as long; one in two signs up instead. Who is refused waits."""
    answers = Counter[int]()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        path, body = "/v1/tokens", {"email": f"{time.monotonic_ns()}@example.com", "password": PASSWORD}
        if number % 2:
            path, body = "/v1/signup", {**body, "tenant_name": "New"}
        answer = await client.post(path, json=body)
        answers[answer.status_code] += 1
        if answer.status_code == 429:
            received = answer.json()
            told = (received["code"], received["limit"], received["scope"], received["allowed"])
            assert told == ("limit_exceeded", "sign_ins_at_once", "process", 20)
            await asyncio.sleep(int(answer.headers["Retry-After"]))
    return answers
