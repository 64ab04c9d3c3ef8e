"""One run with 1,000 readers, and a run that crosses Redis between processes."""

import asyncio
import statistics
import time
from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import uvloop

from tests.app_server import ApiUser
from tests.bench.baselines import FAN_OUT_RATE
from tests.bench.client import Reader, Samples, Target
from tests.bench.deltas import percentile
from tests.bench.lab import Lab, target_of
from tests.bench.machine import cpu
from tests.bench.report import Row

READERS = 1000
CONNECTED_AT_ONCE = 50
WINDOWS, WINDOW_SECONDS = 5, 1.0
HOP_STREAMS = 4
STEADY = "[bench text rate={}]"


def rows(lab: Lab) -> Generator[Row]:
    with lab.baseline("raw") as process:
        raw = uvloop.run(_fan_out(Target(process.base_url), process.pid, "any"))
    with lab.easel() as easel:
        user = easel.sign_up()
        run_id = _start(user, FAN_OUT_RATE)
        mine = uvloop.run(_fan_out(target_of(user), easel.pid, run_id))
        lab.stop_streams()
    what = f"one run, {READERS:,} readers, {FAN_OUT_RATE} events/s"
    yield Row(f"{what}: events for a second of CPU", mine[0], "", raw[0], "raw ASGI app", ratio_least=0.8)
    yield Row(f"{what}: p99", mine[1], "ms", raw[1], "raw ASGI app", most=5)


def hop_rows(lab: Lab) -> Generator[Row]:
    """Accepted and read at two APIs, executed by two workers."""
    with lab.easel() as easel:
        user = easel.sign_up()
        near = uvloop.run(_p50([(target_of(user), _start(user, 50)) for _ in range(HOP_STREAMS)]))
        lab.stop_streams()
    with lab.redis() as redis, ExitStack() as stack:
        shared: dict[str, Any] = {"database_url": lab.new_database(), "redis_url": redis.url}
        apis = [stack.enter_context(lab.easel(**shared, embedded_worker=False)) for _ in range(2)]
        for _ in range(2):
            stack.enter_context(lab.easel("worker", **shared))
        user = apis[0].sign_up()
        there = Target(apis[1].base_url, target_of(user).authorization)
        far = uvloop.run(_p50([(there, _start(user, 50)) for _ in range(HOP_STREAMS)]))
        lab.stop_streams()
    what = "text delta, two APIs and two workers over Redis, added p50"
    yield Row(what, far - near, "ms", most=2)
    yield Row("text delta, two APIs and two workers over Redis, p50", far, "ms", near, "in process")


def _start(user: ApiUser, rate: int) -> str:
    return str(user.start(STEADY.format(rate), agent_key="assistant")["id"])


async def _fan_out(target: Target, pid: int, run_id: str) -> tuple[float, float]:
    """Events for a second of processor time, p99 in milliseconds."""
    samples, readers = Samples(), list[Reader]()
    async with asyncio.timeout(60):
        while len(readers) < READERS:
            new = await asyncio.gather(*(target.follow(run_id, samples) for _ in range(CONNECTED_AT_ONCE)))
            await asyncio.gather(*(reader.first_stamp for reader in new))
            readers.extend(new)
    await asyncio.sleep(WINDOW_SECONDS)
    samples.recording = True
    rates: list[float] = []
    delays: list[float] = []
    for _ in range(WINDOWS):
        used, began = cpu(pid), time.monotonic()
        await asyncio.sleep(WINDOW_SECONDS)
        window = sorted(samples.between(began, time.monotonic()))
        rates.append(len(window) / (cpu(pid) - used))
        delays.append(1000 * percentile(window, 0.99))
    for reader in readers:
        reader.leave()
    return statistics.median(rates), statistics.median(delays)


async def _p50(runs: list[tuple[Target, str]]) -> float:
    """Milliseconds from the provider to the reader."""
    samples = Samples()
    readers = [await target.follow(run_id, samples) for target, run_id in runs]
    async with asyncio.timeout(30):
        await asyncio.gather(*(reader.first_stamp for reader in readers))
    await asyncio.sleep(WINDOW_SECONDS)
    samples.recording = True
    medians: list[float] = []
    for _ in range(WINDOWS):
        began = time.monotonic()
        await asyncio.sleep(WINDOW_SECONDS)
        medians.append(1000 * percentile(sorted(samples.between(began, time.monotonic())), 0.5))
    for reader in readers:
        reader.leave()
    return statistics.median(medians)
