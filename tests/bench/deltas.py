"""Text deltas at 50 a second and stream: processor time, delay, and how many streams one core carries."""

import asyncio
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import redis
import uvloop

from tests.bench.client import Reader, Samples, Target
from tests.bench.curve import Curve, draw
from tests.bench.lab import Lab, target_of
from tests.bench.machine import cpu, waited
from tests.bench.report import Row
from tests.servers import RedisServer

RATE = 50
BASE = 50
COUNTS = (10, 25, BASE, 75, 100, 130, 160, 200, 250)
COUNTS_OF_RAW = (BASE, 100, 150, 200)
LIMIT_MS = 50.0
WINDOWS, WINDOW_SECONDS, SETTLE_SECONDS = 5, 0.7, 0.5
STARTED_AT_ONCE = 8
START_SECONDS = 60.0
TEXT = f"[bench text rate={RATE}]"


@dataclass(frozen=True)
class Point:
    """Medians of the windows, while so many streams run."""

    streams: int
    p50_ms: float
    p99_ms: float
    cpu_us: float
    arrived: float
    """Of the deltas that were due."""
    waited: float = 0.0
    """The share of the time in which the process was kept from its core."""


def rows(lab: Lab) -> Generator[Row]:
    found: dict[str, list[Point]] = {}
    for name, counts in (("openai", COUNTS), ("agents", COUNTS), ("raw", COUNTS_OF_RAW)):
        with lab.baseline(name) as process:
            found[name] = measure(lab, Target(process.base_url), process.pid, counts)
    with lab.easel() as easel:
        found["easel"] = measure(lab, target_of(easel.sign_up()), easel.pid, COUNTS)
    lab.keep_picture("bench-streams.svg", _picture(found))
    mine, naive, raw = (_at_base(found[name]) for name in ("easel", "openai", "raw"))
    yield Row("text delta, CPU, in process", mine.cpu_us, "us", naive.cpu_us, "naive proxy", most=120)
    yield Row("text delta, CPU, in process", mine.cpu_us, "us", raw.cpu_us, "raw proxy")
    what = f"text delta, provider to reader at {BASE} streams"
    yield Row(f"{what}, p50", mine.p50_ms, "ms", naive.p50_ms, "naive proxy", most=3)
    yield Row(f"{what}, p99", mine.p99_ms, "ms", naive.p99_ms, "naive proxy", most=25)
    what = "time ready to run without its core (above 20 %, distrust the delays)"
    yield Row(what, 100 * mine.waited, "%", 100 * naive.waited, "naive proxy", most=20)
    carried = {name: streams_carried(points) for name, points in found.items()}
    what = f"streams on a core, {RATE} deltas/s, p99 < {LIMIT_MS:.0f} ms"
    yield Row(what, carried["easel"], "", carried["openai"], "naive proxy", least=130)
    yield Row(what, carried["easel"], "", carried["agents"], "Agents SDK proxy")
    yield from _redis_rows(lab, naive)


def _redis_rows(lab: Lab, naive: Point) -> Generator[Row]:
    with lab.redis() as broker, lab.easel(redis_url=broker.url) as easel:
        target = target_of(easel.sign_up())
        mine = _at_base(measure(lab, target, easel.pid, (BASE,)))
        yield Row("text delta, CPU, through Redis", mine.cpu_us, "us", naive.cpu_us, "naive proxy", most=160)
        microseconds, size = _of_redis(lab, target, broker)
    yield Row("one event in Redis: CPU of the Redis server", microseconds, "us")
    yield Row("one event in Redis: its memory", size, "bytes")


def _picture(found: Mapping[str, Sequence[Point]]) -> str:
    names = {"easel": "Easel", "openai": "naive proxy", "agents": "Agents SDK proxy", "raw": "raw proxy"}
    curves = [Curve(name, [(p.streams, p.p99_ms) for p in found[key]]) for key, name in names.items()]
    title = f"p99 of a text delta, {RATE} a second and stream"
    return draw(title, "streams on one core", "ms", curves, top=4 * LIMIT_MS, limit=LIMIT_MS)


def measure(lab: Lab, target: Target, pid: int, counts: Sequence[int]) -> list[Point]:
    """Stops where the delay is far past the limit."""
    return uvloop.run(_measure(lab, target, pid, counts))


async def _measure(lab: Lab, target: Target, pid: int, counts: Sequence[int]) -> list[Point]:
    samples, readers, points = Samples(), list[Reader](), list[Point]()
    await (await target.run("[bench text deltas=3]")).ended
    try:
        for count in counts:
            points.append(await _point_of(target, samples, readers, pid, count))
            print(f"  {points[-1]}", flush=True)  # noqa: T201
            if count >= BASE and (points[-1].p99_ms > 2 * LIMIT_MS or points[-1].arrived < 0.9):
                break
    finally:
        await asyncio.to_thread(lab.stop_streams)
        ends = asyncio.gather(*(reader.ended for reader in readers), return_exceptions=True)
        await asyncio.wait_for(ends, START_SECONDS)
    return points


async def _point_of(target: Target, samples: Samples, readers: list[Reader], pid: int, count: int) -> Point:
    """What takes no more streams, or loses some, has carried them infinitely late."""
    try:
        await _start(target, samples, readers, count)
    except (OSError, TimeoutError):
        late = float("inf")
        return Point(count, late, late, late, 0)
    return await _point(samples, pid, count)


async def _start(target: Target, samples: Samples, readers: list[Reader], count: int) -> None:
    async with asyncio.timeout(START_SECONDS):
        while len(readers) < count:
            more = min(STARTED_AT_ONCE, count - len(readers))
            new = await asyncio.gather(*(target.run(TEXT, samples) for _ in range(more)))
            readers.extend(new)
            await asyncio.gather(*(reader.first_stamp for reader in new))
    await asyncio.sleep(SETTLE_SECONDS)


async def _point(samples: Samples, pid: int, count: int) -> Point:
    samples.taken.clear()
    samples.recording = True
    delays: list[list[float]] = []
    costs: list[float] = []
    kept_waiting = waited(pid)
    for _ in range(WINDOWS):
        used, began = cpu(pid), time.monotonic()
        await asyncio.sleep(WINDOW_SECONDS)
        delays.append(sorted(samples.between(began, time.monotonic())))
        costs.append((cpu(pid) - used) / max(len(delays[-1]), 1))
    samples.recording = False
    kept_waiting = (waited(pid) - kept_waiting) / (WINDOWS * WINDOW_SECONDS)
    arrived = sum(map(len, delays)) / (count * RATE * WINDOWS * WINDOW_SECONDS)
    p50, p99 = (1000 * statistics.median(percentile(window, share) for window in delays) for share in (0.5, 0.99))
    return Point(count, p50, p99, 1e6 * statistics.median(costs), arrived, kept_waiting)


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else float("inf")


def _of_redis(lab: Lab, target: Target, server: RedisServer) -> tuple[float, float]:
    """Microseconds and bytes for one event, of BASE streams."""
    with cast(Any, redis.Redis).from_url(server.url) as client:
        before, used = client.info("memory")["used_memory"], cpu(server.process.pid)
        deltas = uvloop.run(_deltas(lab, target))
        used, after = cpu(server.process.pid) - used, client.info("memory")["used_memory"]
    return 1e6 * used / deltas, (after - before) / deltas


async def _deltas(lab: Lab, target: Target) -> int:
    samples, readers = Samples(recording=True), list[Reader]()
    await _start(target, samples, readers, BASE)
    await asyncio.sleep(WINDOWS * WINDOW_SECONDS)
    await asyncio.to_thread(lab.stop_streams)
    # Each stamp comes once more, in the whole text.
    await asyncio.wait_for(asyncio.gather(*(reader.ended for reader in readers)), START_SECONDS)
    return len(samples.taken) // 2


def streams_carried(points: Sequence[Point]) -> float:
    """Where the line between two points crosses the limit; the largest count where none does."""
    for before, after in pairwise(points):
        if after.p99_ms > LIMIT_MS:
            share = (LIMIT_MS - before.p99_ms) / (after.p99_ms - before.p99_ms)
            return round(before.streams + max(share, 0) * (after.streams - before.streams))
    return points[-1].streams


def _at_base(points: Sequence[Point]) -> Point:
    return next(point for point in points if point.streams == BASE)
