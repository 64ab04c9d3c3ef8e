"""The broker between processes: tasks, ready tenants, the event log, token buckets, on Redis or in process."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from docket import Docket

from app.event_log import EventLog, MemoryEventLog
from app.ready_queue import MemoryReadyQueue, ReadyQueue, RedisReadyQueue
from app.redis_event_log import REDIS_TIMEOUT_SECONDS, RedisEventLog
from app.redis_streams import BROKER_UNAVAILABLE
from app.settings import Settings
from app.token_bucket import MemoryTokenBuckets, RedisTokenBuckets, TokenBuckets

__all__ = ["BROKER_UNAVAILABLE", "Broker", "open_broker"]

REDIS_CONNECTIONS = 500
# docket's workers tell each other that they live, every two seconds if not told otherwise; here nobody asks.
HEARTBEAT = timedelta(seconds=60)


class Broker:
    """Tasks, ready tenants, the events of runs, token buckets.

    Methods raise BROKER_UNAVAILABLE while Redis does not answer.
    """

    def __init__(self, docket: Docket, ready: ReadyQueue, events: EventLog, buckets: TokenBuckets) -> None:
        self.docket = docket
        self.ready = ready
        self.events = events
        self.buckets = buckets

    @asynccontextmanager
    async def _redis(self) -> AsyncGenerator[Any]:
        # docket types only the commands that it uses itself, and waits for their answers for ever.
        async with asyncio.timeout(REDIS_TIMEOUT_SECONDS), self.docket.redis() as redis:
            yield redis

    async def enqueue(self, task: str, *arguments: object, key: str, when: datetime | None = None) -> None:
        """Schedule the task, now or then; nothing happens where a task of this key is scheduled and not finished."""
        if task not in self.docket.tasks:
            self.docket.register(_execute_elsewhere, [task])
        async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
            await self.docket.add(task, key=key, when=when)(*arguments)

    async def acquire_turn(self, name: str, every: timedelta) -> bool:
        """True for one caller of all processes in each interval."""
        async with self._redis() as redis:
            return bool(await redis.set(f"easel:turn:{name}", "1", nx=True, px=int(every.total_seconds() * 1000)))

    async def ping(self) -> None:
        async with self._redis() as redis:
            await redis.exists("easel")


async def _execute_elsewhere(*arguments: object) -> None:
    """Stands for the tasks of the workers in a process that only enqueues them: docket asks for a function."""
    raise NotImplementedError


@asynccontextmanager
async def open_broker(settings: Settings, *, name: str = "easel") -> AsyncGenerator[Broker]:
    """The broker on `REDIS_URL`, or in this process."""
    async with AsyncExitStack() as stack:
        if settings.redis_url is None:
            docket = await stack.enter_async_context(_docket(name, f"memory://{uuid4()}"))
            events = MemoryEventLog(ttl_seconds=settings.stream_ttl_seconds)
            yield Broker(docket, MemoryReadyQueue(), events, MemoryTokenBuckets())
            return
        given = settings.redis_url.get_secret_value()
        joint = "&" if "?" in given else "?"
        url = f"{given}{joint}max_connections={REDIS_CONNECTIONS}&socket_connect_timeout={REDIS_TIMEOUT_SECONDS}"
        docket = await stack.enter_async_context(_docket(name, url))
        events = RedisEventLog(docket.redis, ttl_seconds=settings.stream_ttl_seconds)
        await stack.enter_async_context(events.running())
        yield Broker(
            docket,
            RedisReadyQueue(docket.redis, REDIS_TIMEOUT_SECONDS),
            events,
            RedisTokenBuckets(docket.redis, REDIS_TIMEOUT_SECONDS),
        )


def _docket(name: str, url: str) -> Docket:
    return Docket(name=name, url=url, heartbeat_interval=HEARTBEAT)
