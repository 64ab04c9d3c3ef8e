"""The queue of tenants that may have a run to start, in process and on Redis."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from app.ready_queue import MemoryReadyQueue, ReadyQueue, RedisReadyQueue
from tests import timeouts
from tests.servers import redis_server


@pytest.fixture(params=["memory", "redis"])
async def queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[ReadyQueue]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryReadyQueue()
            return
        server = stack.enter_context(redis_server(tmp_path / "redis"))
        client = cast(Any, Redis).from_url(server.url)
        stack.push_async_callback(client.aclose)
        yield RedisReadyQueue(client.client, timeouts.PATIENCE)


async def test_a_tenant_is_in_the_queue_once_and_keeps_its_place(queue: ReadyQueue) -> None:
    first, second = uuid4(), uuid4()
    for tenant_id in (first, second, first):
        await queue.put(tenant_id)
    assert [await queue.get(), await queue.get()] == [first, second]
    assert await nothing_comes(queue)
    await queue.put(first)
    assert await queue.get() == first


async def test_one_of_those_who_wait_gets_the_tenant(queue: ReadyQueue) -> None:
    waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0.1)
    tenants = {uuid4(), uuid4()}
    for tenant_id in tenants:
        await queue.put(tenant_id)
    got: set[UUID] = set()
    while len(got) < len(tenants):
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        got |= {task.result() for task in done}
    await asyncio.sleep(0.1)
    assert [task.done() for task in waiting].count(False) == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert got == tenants


async def nothing_comes(queue: ReadyQueue) -> bool:
    try:
        async with asyncio.timeout(0.2):
            await queue.get()
    except TimeoutError:
        return True
    return False
