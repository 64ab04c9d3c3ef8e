"""Promise 33: floods of nobody's requests, alone and together, slow down no member and take no memory for long."""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests import timeouts
from tests.app_server import PASSWORD, ApiUser
from tests.floods import FLOODS
from tests.processes import running_processes
from tests.results import Results
from tests.waiting import queued

MEGABYTE = 1024 * 1024
# Two passwords are hashed at a time, with 64 MiB each; that much a single user who signs in twice takes, too.
HASHES = 2 * 64 * MEGABYTE
MORE_MEMORY = 64 * MEGABYTE
# Beyond what the process had before: Python and the database driver keep some of what they once needed.
MEMORY_LEFT = 32 * MEGABYTE
LONGEST_ANSWER = 64 * 1024
# Other tests share the processors with the database, now and then; under `prove` nobody does.
BESIDE_OTHERS = 0.01


@dataclass(frozen=True)
class Measured:
    """Medians of the seconds that `/v1/me` took, the longest of `/readyz`, and the most memory in between.

    `busy` is without the time for which the service's loop or this process stood in the queue for a processor: the
    floods come from the same machine, and so may other work.
    """

    me: float
    busy: float
    ready: float
    memory: int


@pytest.fixture
def service(database_url: str, provider_url: str, tmp_path: Path) -> Generator[tuple[ApiUser, psutil.Process]]:
    """A member of an API that hashes passwords as production does, and its process."""
    variables = {"DATABASE_URL": database_url, "OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": provider_url}
    with running_processes(tmp_path / "api", variables) as processes:
        pid, url = processes.api()
        user = ApiUser(url, "Ada's")
        yield user, psutil.Process(pid)
        user.http.close()


@pytest.mark.slow
async def test_all_floods_at_once(service: tuple[ApiUser, psutil.Process]) -> None:
    await withstand(*service, [*FLOODS], seconds=3, beside=BESIDE_OTHERS)


@pytest.mark.prove
@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", [*([name] for name in FLOODS), [*FLOODS]], ids=" ".join)
async def test_a_flood_of_a_minute(service: tuple[ApiUser, psutil.Process], names: list[str], results: Results) -> None:
    kept, tried = await withstand(*service, names, seconds=60)
    what = names[0].replace("_", " ") if len(names) == 1 else "all floods at once"
    results(33, what, tried=f"60 s, answers: {tried}", kept=kept)


async def withstand(
    ada: ApiUser, process: psutil.Process, names: list[str], *, seconds: float, beside: float = 0.0
) -> tuple[str, str]:
    """What was kept, and what the floods were answered; `beside` are the seconds that idle counts for at least."""
    async with httpx.AsyncClient(base_url=ada.base_url, timeout=30, headers=ada.http.headers) as member:
        idle = await measure(member, process, seconds=1)
        before = process.memory_info().rss
        flood = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.floods", ada.base_url, PASSWORD, str(seconds + 1), *names),
            stdout=asyncio.subprocess.PIPE,
        )
        assert flood.stdout is not None
        assert await flood.stdout.readline() == b"begun\n"
        await asyncio.sleep(1)
        busy = await measure(member, process, seconds=seconds)
        output, _ = await flood.communicate()
        assert flood.returncode == 0
    answers: dict[str, Any] = json.loads(output)
    left = await memory_left(process, before)
    assert busy.busy <= 3 * timeouts.SCALE * max(idle.busy, beside), (busy, idle)
    assert busy.ready < timeouts.ANSWER
    hashes = HASHES if {"sign_ins", "sign_ups"} & set(names) else 0
    assert busy.memory - before <= MORE_MEMORY + hashes
    assert sum(answers["statuses"].values()) > 0
    assert not {"500", "503"} & answers["statuses"].keys()
    assert answers["longest"] <= LONGEST_ANSWER
    kept = (
        f"`/v1/me` p50 {idle.busy * 1000:.1f} -> {busy.busy * 1000:.1f} ms "
        f"({busy.me * 1000:.1f} with the queue for a processor), 0 x 503 on `/readyz`, "
        f"memory +{(busy.memory - before) / MEGABYTE:.0f} MiB ({hashes // MEGABYTE} for hashes) "
        f"and back to +{left / MEGABYTE:.0f}, "
        f"longest answer {answers['longest']} bytes"
    )
    return kept, ", ".join(f"{count} x {status}" for status, count in sorted(answers["statuses"].items()))


async def measure(member: httpx.AsyncClient, process: psutil.Process, *, seconds: float) -> Measured:
    me: list[float] = []
    busy: list[float] = []
    ready: list[float] = []
    memory = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path, took in (("/v1/me", me), ("/readyz", ready)):
            waited, began = queued(process.pid), time.monotonic()
            answer = await member.get(path)
            took.append(time.monotonic() - began)
            if took is me:
                busy.append(max(took[-1] - (queued(process.pid) - waited), 0.0))
            assert answer.status_code == 200, answer.text
        memory = max(memory, process.memory_info().rss)
        await asyncio.sleep(0.01)
    return Measured(statistics.median(me), statistics.median(busy), max(ready), memory)


async def memory_left(process: psutil.Process, before: int) -> int:
    """How much more the process holds than before the flood, as soon as that is little."""
    deadline = time.monotonic() + timeouts.PATIENCE
    while (left := process.memory_info().rss - before) > MEMORY_LEFT:
        assert time.monotonic() < deadline, f"{left / MEGABYTE:.0f} MiB were not given back"
        await asyncio.sleep(0.2)
    return max(left, 0)
