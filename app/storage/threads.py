"""Blocking storage clients off the event loop: a pool of their own, and a deadline for every call."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from app.storage.store import StorageUnavailable

CALL_SECONDS = 8.0
# Of one attempt; an attempt that ran into one of them is not repeated. urllib3 grants the sending of a whole body
# as long as a connect, so less would cut off large uploads over slow lines.
CONNECT_SECONDS = 4.0
READ_SECONDS = 5.0
# As many as the connections that the HTTP clients below keep open.
THREADS = 10

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    def __init__(self, name: str) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix=f"storage-{name}")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result, or StorageUnavailable after CALL_SECONDS, time spent waiting for a thread included."""
        work = functools.partial(call, *args, **kwargs)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError:
            message = f"The object storage ({self._name}) did not answer within {CALL_SECONDS:.0f} seconds."
            raise StorageUnavailable(message) from None

    def close(self) -> None:
        """Without waiting: a thread that hangs in a dead connection ends with its socket's timeout."""
        self._pool.shutdown(wait=False, cancel_futures=True)
