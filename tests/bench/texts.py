"""A turn of text alone: its processor time, how many a core finishes, and how soon one starts."""

import asyncio
import statistics
from collections.abc import Generator

import uvloop

from tests.bench.client import Reader, Target
from tests.bench.deltas import percentile
from tests.bench.lab import Lab, target_of
from tests.bench.machine import cpu
from tests.bench.report import Row

TEXT = "[bench text deltas=20]"
REPEATS, TURNS = 5, 10
AT_ONCE, WINDOW_SECONDS = 24, 1.5
STARTS = 25
WAITING = 1000


def rows(lab: Lab) -> Generator[Row]:
    alone = lab.turns("agents", TEXT)
    plain, first = alone["cpu"], 1000 * alone["first"]
    crowd = lab.turns("agents", TEXT, str(AT_ONCE))["cpu"]
    with lab.easel() as easel:
        target = target_of(easel.sign_up())
        cost = uvloop.run(_cost(target, easel.pid))
        before = lab.postgres_cpu()
        uvloop.run(_turns(target))
        of_postgres = (lab.postgres_cpu() - before) / TURNS
        starts = uvloop.run(_starts(target))
        throughput = uvloop.run(_throughput(target, easel.pid))
    yield Row("text turn (20 deltas), CPU", 1000 * cost, "ms", 1000 * plain, "plain Agents SDK", ratio_most=2)
    what = f"text runs finished in a second of a core, {AT_ONCE} at once"
    yield Row(what, throughput, "", 1 / crowd, "plain Agents SDK", least=40)
    yield Row("text turn, CPU of PostgreSQL", 1000 * of_postgres, "ms")
    yield from _start_rows("idle", starts, first)
    with lab.easel(tenant_concurrency=10, worker_concurrency=20) as easel:
        busy, other = easel.sign_up(), easel.sign_up()
        for _ in range(WAITING):
            busy.start("[bench text rate=1]", agent_key="assistant")
        starts = uvloop.run(_starts(target_of(other)))
    yield from _start_rows(f"{WAITING:,} runs of another tenant waiting", starts, first)
    lab.stop_streams()


async def _turns(target: Target) -> None:
    for _ in range(TURNS):
        await target.turn(TEXT)


async def _cost(target: Target, pid: int) -> float:
    await _turns(target)
    costs: list[float] = []
    for _ in range(REPEATS):
        began = cpu(pid)
        await _turns(target)
        costs.append((cpu(pid) - began) / TURNS)
    return statistics.median(costs)


async def _throughput(target: Target, pid: int) -> float:
    """Runs for a second of processor time."""
    finished, ended = 0, False

    async def keep_asking() -> None:
        nonlocal finished
        # Not by the cancellation alone: a connection that is just closing may lose it.
        while not ended:
            await target.turn(TEXT)
            finished += 1

    asking = [asyncio.create_task(keep_asking()) for _ in range(AT_ONCE)]
    await asyncio.sleep(WINDOW_SECONDS)
    rates: list[float] = []
    for _ in range(REPEATS):
        used, before = cpu(pid), finished
        await asyncio.sleep(WINDOW_SECONDS)
        rates.append((finished - before) / (cpu(pid) - used))
    ended = True
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    return statistics.median(rates)


async def _starts(target: Target) -> list[Reader]:
    found: list[Reader] = []
    for _ in range(STARTS):
        found.append(await target.turn(TEXT))
        await asyncio.sleep(0.02)
    return found


def _start_rows(when: str, starts: list[Reader], first_of_plain: float) -> Generator[Row]:
    posted = sorted(1000 * (reader.started_at - reader.sent_at) for reader in starts)
    created = sorted(1000 * (reader.started_at - reader.created_at) for reader in starts)
    yield Row(f"run.created to run.started, {when}, p50", percentile(created, 0.5), "ms", most=5)
    beside = "plain Agents SDK, to its first event"
    yield Row(f"POST to run.started, {when}, p50", percentile(posted, 0.5), "ms", first_of_plain, beside)
    yield Row(f"POST to run.started, {when}, slowest of {STARTS}", posted[-1], "ms", most=250)
