"""The tenants that may have a run to start, each once, the one that has waited longest first.

Nothing is lost with it: the runs are rows, and a sweep puts their tenants in again.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol
from uuid import UUID

KEY = "easel:ready"
# Redis is asked again after this time, so that a connection that was dropped silently is noticed.
WAIT_SECONDS = 10


class ReadyQueue(Protocol):
    """Methods raise BROKER_UNAVAILABLE while Redis does not answer."""

    async def put(self, tenant_id: UUID) -> None:
        """A tenant that is in the queue keeps its place."""
        ...

    async def get(self) -> UUID:
        """Wait for a tenant and take it out; one of all callers gets it."""
        ...


class MemoryReadyQueue:
    def __init__(self) -> None:
        self._tenants: dict[UUID, None] = {}
        self._filled = asyncio.Event()

    async def put(self, tenant_id: UUID) -> None:
        self._tenants.setdefault(tenant_id)
        self._filled.set()

    async def get(self) -> UUID:
        while not self._tenants:
            self._filled.clear()
            await self._filled.wait()
        tenant_id = next(iter(self._tenants))
        del self._tenants[tenant_id]
        return tenant_id


class RedisReadyQueue:
    """A sorted set: the score is the time at which the tenant was put in, by the clock of the process that did."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Any]], timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout

    async def put(self, tenant_id: UUID) -> None:
        async with asyncio.timeout(self._timeout), self._connect() as redis:
            await redis.zadd(KEY, {str(tenant_id): time.time()}, nx=True)

    async def get(self) -> UUID:
        found: Any = None
        while found is None:
            async with asyncio.timeout(WAIT_SECONDS + self._timeout), self._connect() as redis:
                found = await redis.bzpopmin(KEY, timeout=WAIT_SECONDS)
        return UUID(found[1].decode())
