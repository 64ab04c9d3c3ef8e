"""The event log, in process and on Redis: numbering, fence, and readers that miss nothing."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
import redis.asyncio

from app.event_log import EventLog, MemoryEventLog, Record, Subscription
from app.redis_event_log import RedisEventLog
from tests import timeouts
from tests.servers import REDIS_SERVERS, RedisServer, redis_server

TTL_SECONDS = 60
RUN = UUID(int=1)


@pytest.fixture(scope="module")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, RedisServer]]:
    """One of each kind."""
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(redis_server(tmp_path_factory.mktemp("redis"), kind=kind))
            for kind in REDIS_SERVERS
        }


@pytest.fixture(params=REDIS_SERVERS)
def redis_of_tests(request: pytest.FixtureRequest, redis_servers: dict[str, RedisServer]) -> RedisServer:
    return redis_servers[request.param]


@pytest.fixture(params=["memory", *REDIS_SERVERS])
async def log(request: pytest.FixtureRequest) -> AsyncGenerator[EventLog]:
    if request.param == "memory":
        yield MemoryEventLog(ttl_seconds=TTL_SECONDS)
        return
    servers: dict[str, RedisServer] = request.getfixturevalue("redis_servers")
    async with log_of_a_process(servers[request.param]) as (log, client):
        await client.flushall()
        yield log


@asynccontextmanager
async def log_of_a_process(server: RedisServer) -> AsyncGenerator[tuple[RedisEventLog, Any]]:
    async with cast(Any, redis.asyncio.Redis).from_url(server.url, socket_timeout=None) as client:

        @asynccontextmanager
        async def connect() -> AsyncGenerator[Any]:
            yield client

        log = RedisEventLog(connect, ttl_seconds=TTL_SECONDS)
        async with log.running():
            yield log, client


def records(first: int, last: int, word: str = "a") -> list[Record]:
    return [Record(seq, "text.delta", f"{word}{seq}".encode(), f"{word}{seq}") for seq in range(first, last + 1)]


async def next_of(subscription: Subscription) -> list[Record]:
    return await subscription.next(timeouts.PATIENCE)


async def test_a_number_keeps_its_first_record(log: EventLog) -> None:
    assert await log.append(RUN, records(1, 3))
    assert await log.append(RUN, records(2, 4, "b"))
    assert [one.data for one in await log.read(RUN, 0)] == [b"a1", b"a2", b"a3", b"b4"]
    assert await log.read(RUN, 3) == records(4, 4, "b")
    assert (await log.exists(RUN), await log.exists(uuid4())) == (True, False)


async def test_an_earlier_attempt_writes_nothing_once_a_later_one_has_fenced_the_log(log: EventLog) -> None:
    assert await log.append(RUN, records(1, 2), attempt=1)
    assert await log.fence(RUN, 2) == records(1, 2)
    assert not await log.append(RUN, records(3, 3), attempt=1)
    assert await log.append(RUN, records(3, 3, "b"), attempt=2)
    assert await log.read(RUN, 2) == records(3, 3, "b")


async def test_a_reader_gets_what_was_there_and_what_comes(log: EventLog) -> None:
    await log.append(RUN, records(1, 3))
    with log.subscribe(RUN, 1) as subscription:
        assert await next_of(subscription) == records(2, 3)
        waiting = asyncio.create_task(next_of(subscription))
        await asyncio.sleep(0.05)
        await log.append(RUN, records(4, 4))
        assert await waiting == records(4, 4)
        assert await subscription.next(0.05) == []


async def test_what_comes_while_a_reader_is_busy_comes_at_once(log: EventLog) -> None:
    with log.subscribe(RUN, 0) as subscription:
        assert await subscription.next(0.05) == []
        for seq in range(1, 6):
            await log.append(RUN, records(seq, seq))
        assert await next_of(subscription) == records(1, 5)


async def test_a_reader_who_sees_a_gap_reads_what_it_missed(log: EventLog) -> None:
    with log.subscribe(RUN, 0) as subscription:
        assert await subscription.next(0.05) == []
        await log.append(RUN, records(1, 3))
        await next_of(subscription)
        await log.append(RUN, records(4, 6))
        taken = await next_of(subscription)
        subscription.push(records(9, 9))  # 7 and 8 were lost on their way
        await log.append(RUN, records(7, 9))
        while taken[-1].seq < 9:
            taken += await next_of(subscription)
    assert taken == records(4, 9)


async def test_what_is_pushed_while_a_reader_reads_the_log_is_neither_lost_nor_doubled() -> None:
    answer: asyncio.Future[list[Record]] = asyncio.get_running_loop().create_future()
    subscription = Subscription(lambda after: answer, 0)
    reading = asyncio.create_task(next_of(subscription))
    await asyncio.sleep(0)
    subscription.push(records(1, 2))
    subscription.push(records(3, 4))
    answer.set_result(records(1, 3))
    assert await reading == records(1, 4)
    subscription.push(records(5, 5))
    assert await next_of(subscription) == records(5, 5)


async def test_what_is_pushed_as_a_wait_ends_is_not_lost() -> None:
    kept: list[Record] = []

    async def read(after: int) -> list[Record]:
        return [one for one in kept if one.seq > after]

    def append() -> None:
        kept.extend(records(1, 1))
        subscription.push(records(1, 1))

    subscription = Subscription(read, 0)
    assert await subscription.next(0) == []
    waiting = asyncio.create_task(subscription.next(0.01))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.01, append)
    time.sleep(0.05)  # so that the wait ends and the record comes in one step of the loop
    assert await waiting == records(1, 1)


async def test_every_reader_gets_every_record_once(log: EventLog) -> None:
    async def read(after: int) -> list[Record]:
        found: list[Record] = []
        with log.subscribe(RUN, after) as subscription:
            while not found or found[-1].seq < 50:
                found += await next_of(subscription)
        return found

    readers = [asyncio.create_task(read(after % 7)) for after in range(40)]
    for seq in range(1, 51):
        await log.append(RUN, records(seq, seq), attempt=1)
        if seq % 9 == 0:
            log.release(RUN)  # from here on Redis reaches them
            await asyncio.sleep(0)
    for after, reader in enumerate(readers):
        assert await reader == records(after % 7 + 1, 50)


async def test_what_is_delivered_and_what_is_returned_are_every_record_once(log: EventLog) -> None:
    async def read(slow: random.Random) -> list[Record]:
        found: list[Record] = []

        def deliver(published: Sequence[Record]) -> bool:
            delivered = slow.random() < 0.7
            found.extend(published if delivered else ())
            return delivered

        with log.subscribe(RUN, 0, deliver) as subscription:
            while subscription.position < 200:
                found += await next_of(subscription)
                await asyncio.sleep(slow.choice([0, 0, 0.001]))
        return found

    readers = [asyncio.create_task(read(random.Random(seed))) for seed in range(20)]
    for seq in range(1, 200, 2):
        await log.append(RUN, records(seq, seq + 1), attempt=1)
        if seq % 9 == 0:
            log.release(RUN)
        await asyncio.sleep(0.001 * (seq % 3))
    # A last record that is delivered wakes nobody.
    log.wake_readers()
    for reader in readers:
        assert await reader == records(1, 200)


async def test_silence_is_counted_from_the_last_record_that_was_delivered(log: EventLog) -> None:
    with log.subscribe(RUN, 0, lambda _: True) as subscription:
        assert await subscription.next(0) == []
        waiting = asyncio.create_task(subscription.next(0.4))
        for seq in range(1, 5):
            await asyncio.sleep(0.2)
            await log.append(RUN, records(seq, seq))
        assert not waiting.done()
        async with asyncio.timeout(timeouts.PATIENCE):
            assert await waiting == []
        assert subscription.position == 4


async def test_a_reader_is_woken_where_the_process_is_about_to_end(log: EventLog) -> None:
    with log.subscribe(RUN, 0) as subscription:
        waiting = asyncio.create_task(subscription.next(10 * timeouts.PATIENCE))
        await asyncio.sleep(0.05)
        log.wake_readers()
        async with asyncio.timeout(timeouts.PATIENCE):
            assert await waiting == []


async def test_a_reader_that_is_busy_as_it_is_woken_does_not_wait(log: EventLog) -> None:
    await log.append(RUN, records(1, 1))
    with log.subscribe(RUN, 0) as subscription:
        log.wake_readers()
        async with asyncio.timeout(timeouts.PATIENCE):
            assert await next_of(subscription) == records(1, 1)
            assert await subscription.next(10 * timeouts.PATIENCE) == []
        began = time.monotonic()
        assert await subscription.next(0.2) == []
        assert time.monotonic() - began >= 0.2


async def test_a_signal_is_kept_for_whoever_looks_later(log: EventLog) -> None:
    none = await log.signalled(RUN, "", wait_seconds=0.05)
    waiting = asyncio.create_task(log.signalled(RUN, none, wait_seconds=timeouts.PATIENCE))
    await asyncio.sleep(0.05)
    await log.signal(RUN)
    first = await waiting
    assert first != none
    assert await log.signalled(RUN, "", wait_seconds=timeouts.PATIENCE) == first


async def test_who_has_seen_a_signal_waits_for_the_next(log: EventLog) -> None:
    await log.signal(RUN)
    first = await log.signalled(RUN, "", wait_seconds=timeouts.PATIENCE)
    assert await log.signalled(RUN, first, wait_seconds=0.05) == first
    waiting = asyncio.create_task(log.signalled(RUN, first, wait_seconds=timeouts.PATIENCE))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await log.signal(RUN)
    assert await waiting not in ("", first)


async def test_logs_in_process_end_after_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("app.event_log.time.monotonic", lambda: now)
    log = MemoryEventLog(ttl_seconds=TTL_SECONDS)
    await log.append(RUN, records(1, 1))
    now = TTL_SECONDS - 1
    assert await log.exists(RUN)
    now = TTL_SECONDS + 1
    assert (await log.exists(RUN), await log.read(RUN, 0)) == (False, [])


async def test_what_one_process_writes_another_reads(redis_of_tests: RedisServer) -> None:
    runs = [uuid4() for _ in range(20)]
    async with AsyncExitStack() as stack:
        (writer, _), (reader, _) = [await stack.enter_async_context(log_of_a_process(redis_of_tests)) for _ in range(2)]
        subscriptions = [stack.enter_context(reader.subscribe(run, 0)) for run in runs]
        waiting = [asyncio.create_task(collect(one, 20)) for one in subscriptions]
        for seq in range(1, 21):
            await asyncio.gather(*(writer.append(run, records(seq, seq), attempt=1) for run in runs))
        assert await asyncio.gather(*waiting) == [records(1, 20)] * len(runs)


async def test_a_process_writes_and_reads_all_its_runs_at_once(
    redis_of_tests: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, rounds, batches = [uuid4() for _ in range(20)], 20, list[int]()
    send = RedisEventLog._send  # pyright: ignore[reportPrivateUsage]

    async def counted(log: RedisEventLog, batch: list[Any]) -> Any:
        batches.append(len(batch))
        return await send(log, batch)

    monkeypatch.setattr(RedisEventLog, "_send", counted)
    async with AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(log_of_a_process(redis_of_tests)) for _ in range(2)]
        (writer, client), (reader, _) = logs
        subscriptions = [stack.enter_context(reader.subscribe(run, 0)) for run in runs]
        for seq in range(1, rounds + 1):
            await asyncio.gather(*(writer.append(run, records(seq, seq), attempt=1) for run in runs))
            await asyncio.gather(*(collect(one, seq) for one in subscriptions))
        reads = (await client.info("commandstats"))["cmdstat_xread"]["calls"]
    assert sum(batches) == rounds * len(runs)
    assert len(batches) <= 3 * rounds
    # Each wait for all streams may end with the first few that have something.
    assert reads < rounds * len(runs) / 2


async def test_a_run_that_goes_on_in_another_process_reaches_the_readers_of_the_first(
    redis_of_tests: RedisServer,
) -> None:
    run = uuid4()
    async with AsyncExitStack() as stack:
        (first, _), (second, _) = [await stack.enter_async_context(log_of_a_process(redis_of_tests)) for _ in range(2)]
        subscription = stack.enter_context(first.subscribe(run, 0))
        await first.append(run, records(1, 2), attempt=1)
        assert await collect(subscription, 2) == records(1, 2)
        await second.fence(run, 2)
        await second.append(run, records(3, 3, "b"), attempt=2)
        assert not await first.append(run, records(3, 3), attempt=1)
        assert await collect(subscription, 3) == records(3, 3, "b")
        await second.append(run, records(4, 4, "b"), attempt=2)
        assert await collect(subscription, 4) == records(4, 4, "b")


async def test_readers_go_on_after_redis_was_away_and_lost_its_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.redis_streams.RECONNECT_SECONDS", 0.1)
    with redis_server(tmp_path / "redis", persistent=True) as server:
        async with log_of_a_process(server) as (log, client):
            with log.subscribe(RUN, 0) as subscription:
                await log.append(RUN, records(1, 2))
                assert await collect(subscription, 2) == records(1, 2)
                await client.connection_pool.disconnect()
                async with log_of_a_process(server) as (other, _):
                    await other.append(RUN, records(3, 3))
                await client.script_flush()
                await log.append(RUN, records(4, 4))
                assert await collect(subscription, 4) == records(3, 4)


async def collect(subscription: Subscription, last: int) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(timeouts.PATIENCE):
        while not found or found[-1].seq < last:
            found += await next_of(subscription)
    return found
