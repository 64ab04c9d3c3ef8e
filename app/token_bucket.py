"""Token buckets, counted for all processes where there is Redis: so many requests a minute, refilled evenly.

As the generic cell rate algorithm counts: a bucket is the time at which it will be full again.
https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

# KEYS: the bucket. ARGV: microseconds for one token, for a whole bucket. Returns the microseconds to wait, 0: taken.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + ARGV[1]
if full - now > tonumber(ARGV[2]) then return full - now - ARGV[2] end
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
return 0
"""
# More are not remembered in process: those that are full again are dropped first.
MOST_BUCKETS = 10_000
MICROSECONDS = 1_000_000


class TokenBuckets(Protocol):
    async def take(self, name: str, *, size: int, seconds: float) -> float:
        """Take a token of a bucket of `size` that is refilled in `seconds`: 0, or the seconds until there is one."""
        ...


class MemoryTokenBuckets:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full: dict[str, float] = {}

    async def take(self, name: str, *, size: int, seconds: float) -> float:
        now = self._clock()
        full = max(self._full.pop(name, 0.0), now) + seconds / size
        if full - now > seconds:
            self._full[name] = full - seconds / size
            return full - now - seconds
        self._full[name] = full
        if len(self._full) > MOST_BUCKETS:
            self._full = {one: then for one, then in self._full.items() if then > now}
            # Many addresses at once: the one seen longest ago is forgotten.
            while len(self._full) > MOST_BUCKETS:
                del self._full[next(iter(self._full))]
        return 0.0


class RedisTokenBuckets:
    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Any]], timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout

    async def take(self, name: str, *, size: int, seconds: float) -> float:
        async with asyncio.timeout(self._timeout), self._connect() as redis:
            # Another name than that of releases that counted milliseconds: they would take these for ages.
            token, bucket = max(round(seconds * MICROSECONDS / size), 1), round(seconds * MICROSECONDS)
            return float(await redis.eval(_TAKE, 1, f"easel:tokens:{name}", token, bucket)) / MICROSECONDS
