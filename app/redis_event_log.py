"""The event log on Redis: one stream a run, one writer and one reader (app/redis_streams.py) a process.

A command for each event and a blocked connection for each reader cost ten times the processor time, see
docs/decisions/0020-event-delivery.md.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from uuid import UUID

from redis.exceptions import NoScriptError

from app.event_log import Deliver, EventLog, Record, Subscription
from app.redis_streams import Entry, StreamReader

# The limit for a command, beyond the time that it is asked to wait.
REDIS_TIMEOUT_SECONDS = 3
PIPELINE = 200

Connect = Callable[[], AbstractAsyncContextManager[Any]]

# KEYS: the stream, its fence. ARGV: attempt, lifetime in seconds, then seq, type, data and key of each record.
# Returns how many were written, or -1 where a later attempt holds the stream.
_APPEND = """
local attempt, fence = tonumber(ARGV[1]), tonumber(redis.call('GET', KEYS[2]) or '0')
if attempt < fence then return -1 end
if attempt > fence then redis.call('SET', KEYS[2], attempt) end
redis.call('EXPIRE', KEYS[2], ARGV[2])
local newest, last, written = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1), 0, 0
if newest[1] then last = tonumber(string.match(newest[1][1], '^(%d+)')) end
for i = 3, #ARGV, 4 do
  if tonumber(ARGV[i]) > last then
    redis.call('XADD', KEYS[1], ARGV[i] .. '-0', 'type', ARGV[i + 1], 'data', ARGV[i + 2], 'key', ARGV[i + 3])
    written = written + 1
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return written
"""


@dataclass(frozen=True)
class _Append:
    keys: tuple[str, str]
    arguments: tuple[Any, ...]
    written: asyncio.Future[int]


class RedisEventLog(EventLog):
    """`connect` gives a client of Redis for a command or a few."""

    def __init__(self, connect: Connect, *, ttl_seconds: int) -> None:
        super().__init__()
        self._connect = connect
        self._ttl = ttl_seconds
        self._sha = ""
        self._pending: list[_Append] = []
        self._writing: asyncio.Task[None] | None = None
        self._reader = StreamReader(self._redis)
        # What this process writes it passes on itself, so its reader need not wait for it.
        self._written_here: set[UUID] = set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        async with self._reader.running():
            yield

    @asynccontextmanager
    async def _redis(self, wait_seconds: float = 0) -> AsyncGenerator[Any]:
        # docket waits for Redis' answers for ever.
        async with asyncio.timeout(wait_seconds + REDIS_TIMEOUT_SECONDS), self._connect() as redis:
            yield redis

    async def append(self, run_id: UUID, records: list[Record], *, attempt: int = 0) -> bool:
        fields = [part for one in records for part in (one.seq, one.type, one.data, one.key)]
        keys = (_stream(run_id), f"{_stream(run_id)}:attempt")
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pending.append(_Append(keys, (attempt, self._ttl, *fields), written))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        held = await written >= 0
        if held:
            if attempt and run_id not in self._written_here:
                self._written_here.add(run_id)
                self._reader.unwatch(_stream(run_id))
            self._publish(run_id, records)
        else:
            self.release(run_id)
        return held

    async def _write(self) -> None:
        """What is appended while a batch is on its way goes with the next."""
        while self._pending:
            batch, self._pending = self._pending[:PIPELINE], self._pending[PIPELINE:]
            try:
                results = await self._send(batch)
            except Exception as error:
                results = [error] * len(batch)
            for one, result in zip(batch, results, strict=True):
                if one.written.done():
                    continue
                if isinstance(result, int):
                    one.written.set_result(result)
                else:
                    one.written.set_exception(result)

    async def _send(self, batch: list[_Append]) -> list[int | Exception]:
        async with self._redis() as redis:
            if not self._sha:
                self._sha = await redis.script_load(_APPEND)
            results = await self._evaluate(redis, batch)
            if any(isinstance(one, NoScriptError) for one in results):  # Redis was restarted
                await redis.script_load(_APPEND)
                results = await self._evaluate(redis, batch)
            return results

    async def _evaluate(self, redis: Any, batch: list[_Append]) -> list[int | Exception]:
        pipeline = redis.pipeline(transaction=False)
        for one in batch:
            pipeline.evalsha(self._sha, len(one.keys), *one.keys, *one.arguments)
        return cast(list[int | Exception], await pipeline.execute(raise_on_error=False))

    async def fence(self, run_id: UUID, attempt: int) -> list[Record]:
        await self.append(run_id, [], attempt=attempt)
        return await self.read(run_id, 0)

    def release(self, run_id: UUID) -> None:
        self._written_here.discard(run_id)
        if run_id in self._subscriptions:
            self._watch(run_id, 0)

    async def read(self, run_id: UUID, after: int) -> list[Record]:
        async with self._redis() as redis:
            entries: Any = await redis.xrange(_stream(run_id), min=f"({after}-0" if after else "-")
        return [_record(entry) for entry in entries]

    async def exists(self, run_id: UUID) -> bool:
        async with self._redis() as redis:
            return bool(await redis.exists(_stream(run_id)))

    async def signal(self, run_id: UUID) -> None:
        async with self._redis() as redis:
            pipeline: Any = redis.pipeline()
            pipeline.xadd(_signal(run_id), {"at": "1"}, maxlen=1)
            pipeline.expire(_signal(run_id), self._ttl)
            await pipeline.execute()

    async def signalled(self, run_id: UUID, seen: str, *, wait_seconds: float) -> str:
        newest: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def receive(entries: list[Entry]) -> None:
            if not newest.done():
                newest.set_result(entries[-1][0].decode())

        self._reader.watch(_signal(run_id), seen or "0-0", receive)
        try:
            async with asyncio.timeout(wait_seconds):
                return await newest
        except TimeoutError:
            return seen
        finally:
            self._reader.unwatch(_signal(run_id))

    @contextmanager
    def subscribe(self, run_id: UUID, after: int, deliver: Deliver | None = None) -> Generator[Subscription]:
        with super().subscribe(run_id, after, deliver) as subscription:
            self._watch(run_id, after)
            try:
                yield subscription
            finally:
                if len(self._subscriptions[run_id]) == 1:
                    self._reader.unwatch(_stream(run_id))

    def _watch(self, run_id: UUID, after: int) -> None:
        if run_id not in self._written_here:
            self._reader.watch(_stream(run_id), f"{after}-0", partial(self._receive, run_id))

    def _receive(self, run_id: UUID, entries: list[Entry]) -> None:
        self._publish(run_id, [_record(entry) for entry in entries])


def _stream(run_id: UUID) -> str:
    return f"easel:run:{run_id}"


def _signal(run_id: UUID) -> str:
    return f"{_stream(run_id)}:signal"


def _record(entry: Entry) -> Record:
    identifier, fields = entry
    seq = int(identifier.split(b"-")[0])
    return Record(seq, fields[b"type"].decode(), fields[b"data"], fields[b"key"].decode())
