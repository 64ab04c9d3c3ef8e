"""How long `easel` takes to start, and what it takes while nothing happens."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.bench.lab import Lab, Process
from tests.bench.machine import cpu, on_the_first_core, rss
from tests.bench.report import Row

REPEATS = 5
SETTLE_SECONDS, IDLE_SECONDS = 3.0, 1.5
EASEL = Path(sys.executable).parent / "easel"


def rows(lab: Lab) -> Generator[Row]:
    help_seconds = _run(str(EASEL), "--help")
    yield Row("easel --help", help_seconds, "s", _run(sys.executable, "-c", "pass"), "python -c pass", most=0.5)
    lab.new_database()  # makes the template, which takes a second of its own
    database_url = lab.new_database()
    ready, _, _ = _start(lambda: lab.easel(database_url=database_url))
    bare, bare_mb, _ = _start(lambda: lab.baseline("bare"))
    yield Row("easel serve, start to /readyz, PostgreSQL up", ready, "s", bare, "bare FastAPI app", most=2.5)
    with lab.easel(database_url=database_url) as easel:
        with_worker, idle = _idle(easel)
    with lab.redis() as redis:
        settings: dict[str, Any] = {"database_url": database_url, "redis_url": redis.url}
        with lab.easel(**settings, embedded_worker=False) as easel:
            alone, idle_alone = _idle(easel)
    yield Row("idle, RSS with worker", with_worker, "MB", bare_mb, "bare FastAPI app", most=190)
    yield Row("idle, RSS of the API alone", alone, "MB", bare_mb, "bare FastAPI app", most=120)
    yield Row("idle, CPU with worker, in a second", idle, "ms", most=5)
    yield Row("idle, CPU of the API alone with Redis, in a second", idle_alone, "ms", most=5)


def _run(*command: str) -> float:
    seconds: list[float] = []
    for _ in range(REPEATS):
        began = time.monotonic()
        with on_the_first_core():
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=60)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def _start(start: Callable[[], AbstractContextManager[Process]]) -> tuple[float, float, float]:
    """Seconds until ready; MB and seconds of processor time then."""
    found: list[tuple[float, float, float]] = []
    for _ in range(REPEATS):
        with start() as process:
            found.append((process.ready_seconds, rss(process.pid), cpu(process.pid)))
    seconds, megabytes, used = (statistics.median(column) for column in zip(*found, strict=True))
    return seconds, megabytes, used


def _idle(process: Process) -> tuple[float, float]:
    """MB, and milliseconds of processor time in a second."""
    time.sleep(SETTLE_SECONDS)
    costs: list[float] = []
    for _ in range(REPEATS):
        began = cpu(process.pid)
        time.sleep(IDLE_SECONDS)
        costs.append(1000 * (cpu(process.pid) - began) / IDLE_SECONDS)
    return rss(process.pid), statistics.median(costs)
