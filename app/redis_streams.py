"""Reads many streams of Redis through one connection."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from redis.exceptions import RedisError

log = logging.getLogger(__name__)

# The exceptions while Redis does not answer.
BROKER_UNAVAILABLE = (RedisError, OSError, TimeoutError)
RECONNECT_SECONDS = 1.0
READ_BATCH = 200
BLOCK_SECONDS = 10.0
INTERRUPT_TTL_SECONDS = 3600
CANCEL_SECONDS = 0.5

Entry = tuple[bytes, dict[bytes, bytes]]
Receive = Callable[[list[Entry]], None]
# A client of Redis, for commands that may wait so many seconds.
Connect = Callable[[float], AbstractAsyncContextManager[Any]]


@dataclass
class _Watch:
    """A stream that is read for a subscription, from `position` on."""

    position: str | bytes
    receive: Receive


class StreamReader:
    """Waits for all watched streams at once."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._watches: dict[str, _Watch] = {}
        self._wanted = asyncio.Event()
        # A record in this stream ends the wait, so that a new watch joins it.
        self._interrupt = f"easel:interrupt:{uuid4()}"
        self._interrupted: str | bytes = "0-0"
        self._interrupting: set[Awaitable[None]] = set()

    def watch(self, stream: str, position: str, receive: Receive) -> None:
        """Pass on what the stream holds past `position`, until `unwatch`; a stream is watched once."""
        if stream in self._watches:
            return
        self._watches[stream] = _Watch(position, receive)
        if self._wanted.is_set():
            task = asyncio.create_task(self._end_wait())
            self._interrupting.add(task)
            task.add_done_callback(self._interrupting.discard)
        self._wanted.set()

    def unwatch(self, stream: str) -> None:
        self._watches.pop(stream, None)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        reading = asyncio.create_task(self._run())
        try:
            yield
        finally:
            # More than once: a client that is just opening or closing a connection may lose a cancellation.
            while not reading.done():
                reading.cancel()
                await asyncio.wait({reading}, timeout=CANCEL_SECONDS)

    async def _run(self) -> None:
        while True:
            if not self._watches:
                self._wanted.clear()
            await self._wanted.wait()
            try:
                await self._read()
            except BROKER_UNAVAILABLE:
                log.warning("events.not_read", exc_info=True)
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _read(self) -> None:
        streams = {stream: watch.position for stream, watch in self._watches.items()}
        streams[self._interrupt] = self._interrupted
        async with self._connect(BLOCK_SECONDS) as redis:
            answer: Any = await redis.xread(streams, count=READ_BATCH, block=int(BLOCK_SECONDS * 1000))
        # RESP3 answers with a mapping of lists of lists, RESP2 with pairs.
        for name, entries in answer.items() if hasattr(answer, "items") else answer or ():
            stream = name.decode()
            if stream == self._interrupt:
                self._interrupted = entries[-1][0]
            elif watch := self._watches.get(stream):
                watch.position = entries[-1][0]
                watch.receive(entries)

    async def _end_wait(self) -> None:
        try:
            async with self._connect(0) as redis:
                pipeline: Any = redis.pipeline(transaction=False)
                pipeline.xadd(self._interrupt, {"at": "1"}, maxlen=1)
                pipeline.expire(self._interrupt, INTERRUPT_TTL_SECONDS)
                await pipeline.execute()
        except BROKER_UNAVAILABLE:
            log.warning("events.not_interrupted", exc_info=True)
