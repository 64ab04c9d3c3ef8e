"""Image turns at once: how long the loop stands still, what they hold in memory, and how long they take."""

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop

from tests.bench import streams
from tests.bench.client import Target
from tests.bench.images import LARGE
from tests.bench.lab import Easel, Lab, target_of
from tests.bench.machine import rss, wait_until_idle
from tests.bench.report import Row

REPEATS = 5
GAP_GOALS = {1: 10.0, 8: 25.0}
GROWTH_AT_ONCE = (1, 8, 32)
TURNS_IN_ALL = 100
PACED_REPEATS, PACED_AT_ONCE, PACED = 3, 20, "[bench image size=3MB seconds=0.9]"
SAMPLE_SECONDS = 0.004


@dataclass
class Peak:
    megabytes: float = 0.0


def rows(lab: Lab) -> Generator[Row]:
    largest = streams.bytes_of_final("3MB") / 1e6
    with lab.easel() as easel:
        target = target_of(easel.sign_up(), "designer")
        turns = _turns(easel, target, 1)
        yield from _growth(easel, target, largest)
        alone = uvloop.run(_alone(lab.provider_url))
        together = statistics.median(_paced(easel, target) for _ in range(PACED_REPEATS))
        what = f"{PACED_AT_ONCE} image turns at once, provider sends for 0.9 s (median of three)"
        yield Row(what, together, "s", alone, "the provider alone", ratio_most=1.5)
        turns += sum(GROWTH_AT_ONCE) + PACED_REPEATS * PACED_AT_ONCE
        while turns < TURNS_IN_ALL:
            turns += _turns(easel, target, 8)
        yield Row(f"RSS after {turns} image turns", rss(easel.pid), "MB", most=300)
    with lab.easel() as easel:
        target = target_of(easel.sign_up(), "designer")
        _turns(easel, target, 1)
        for count, most in GAP_GOALS.items():
            gap = statistics.median(_gap(easel, target, count) for _ in range(REPEATS))
            plain = 1000 * lab.turns("openai", LARGE, str(count))["gap"]
            yield Row(f"third longest stall of the loop, {count} at once", gap, "ms", plain, "plain openai", most=most)


def _growth(easel: Easel, target: Target, largest: float) -> Generator[Row]:
    for count in GROWTH_AT_ONCE:
        before = rss(easel.pid)
        with sampling(easel.pid) as peak:
            _turns(easel, target, count)
        what = f"peak RSS growth, {count} image turns at once"
        beside = f"{count} x the largest image"
        yield Row(what, peak.megabytes - before, "MB", count * largest, beside, ratio_most=3)


def _turns(easel: Easel, target: Target, count: int) -> int:
    asyncio.run(_all_at_once(target, count))
    wait_until_idle(easel.pid)
    return count


def _paced(easel: Easel, target: Target) -> float:
    """Seconds until all have ended."""
    seconds = asyncio.run(_all_at_once(target, PACED_AT_ONCE, PACED))
    wait_until_idle(easel.pid)
    return seconds


async def _all_at_once(target: Target, count: int, text: str = LARGE) -> float:
    began = time.monotonic()
    await asyncio.gather(*(target.turn(text) for _ in range(count)))
    return time.monotonic() - began


async def _alone(provider_url: str) -> float:
    """Seconds in which the provider sends the same to readers that do nothing with it."""
    place = urlsplit(provider_url)
    body = json.dumps({"input": PACED}).encode()
    request = b"POST /v1/responses HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def read() -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(request)
        end = b""
        while not end.endswith(b"\r\n0\r\n\r\n"):
            end = end[-7:] + await reader.read(1 << 18)
        writer.close()

    seconds: list[float] = []
    for _ in range(REPEATS):
        began = time.monotonic()
        await asyncio.gather(*(read() for _ in range(PACED_AT_ONCE)))
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def _gap(easel: Easel, target: Target, count: int) -> float:
    """Milliseconds, as `tests.waiting` sees it from outside."""
    place = urlsplit(easel.base_url)
    command = [sys.executable, "tests/waiting.py", str(place.hostname), str(place.port), str(easel.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as waiting:
        time.sleep(0.3)
        asyncio.run(_all_at_once(target, count))
        longest = float(waiting.communicate("\n", timeout=30)[0])
    # Not before: a process that is asked all the time is never idle.
    wait_until_idle(easel.pid)
    return 1000 * longest


@contextmanager
def sampling(pid: int) -> Generator[Peak]:
    """The largest RSS that is seen within the block."""
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peak.megabytes = max(peak.megabytes, rss(pid))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
