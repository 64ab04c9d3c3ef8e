"""The broker between processes: docket tasks and live event streams, on Redis or in process."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from docket import Docket
from redis.exceptions import RedisError

from app.settings import Settings

log = logging.getLogger(__name__)

# The exceptions of the broker's methods while Redis does not answer.
BROKER_UNAVAILABLE = (RedisError, OSError, TimeoutError)

Entry = tuple[bytes, dict[bytes, bytes]]

READ_BATCH = 200
# The limit for a command, beyond the time that it is asked to wait.
REDIS_TIMEOUT_SECONDS = 3
REDIS_CONNECTIONS = 500

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
class Record:
    """One event in a stream: its number, its type, its JSON bytes.

    `key` identifies the event whichever attempt writes it; readers do not see it.
    """

    seq: int
    type: str
    data: bytes
    key: str = ""


class Broker:
    """Tasks (`docket`) and one stream of numbered events for each run."""

    def __init__(self, docket: Docket, *, stream_ttl_seconds: int) -> None:
        self.docket = docket
        self._ttl = stream_ttl_seconds

    @asynccontextmanager
    async def _redis(self, wait_seconds: float = 0) -> AsyncGenerator[Any]:
        # docket types only the commands that it uses itself, and waits for their answers for ever.
        async with asyncio.timeout(wait_seconds + REDIS_TIMEOUT_SECONDS), self.docket.redis() as redis:
            yield redis

    async def enqueue(self, task: str, *arguments: object, key: str, when: datetime | None = None) -> None:
        """Schedule the task, now or then; nothing happens where a task of this key is scheduled and not finished."""
        async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
            await self.docket.add(task, key=key, when=when)(*arguments)

    async def append(self, run_id: UUID, records: list[Record], *, attempt: int = 0) -> bool:
        """Write records as this attempt; a number that is already in the stream keeps its first record.

        False, and nothing is written, once a later attempt has written or fenced the stream.
        """
        fields = [part for one in records for part in (one.seq, one.type, one.data, one.key)]
        async with self._redis() as redis:
            script: Any = redis.register_script(_APPEND)
            keys = [_stream(run_id), f"{_stream(run_id)}:attempt"]
            return int(await script(keys=keys, args=[attempt, self._ttl, *fields])) >= 0

    async def fence(self, run_id: UUID, attempt: int) -> list[Record]:
        """Shut earlier attempts out of the stream, and return all that they have written."""
        await self.append(run_id, [], attempt=attempt)
        async with self._redis() as redis:
            entries: Any = await redis.xrange(_stream(run_id))
        return [_record(entry) for entry in entries]

    async def read(self, run_id: UUID, after: int, *, wait_seconds: float) -> list[Record]:
        """Records numbered past `after`; waits for the first at most `wait_seconds`, then returns none."""
        wait = max(int(wait_seconds * 1000), 1)
        async with self._redis(wait_seconds) as redis:
            answer: Any = await redis.xread({_stream(run_id): f"{after}-0"}, count=READ_BATCH, block=wait)
        if not answer:
            return []
        # RESP3 answers with a mapping, RESP2 and the in-process server with pairs.
        streams = cast(list[tuple[bytes, list[Entry]]], list(answer.items() if hasattr(answer, "items") else answer))
        return [_record(entry) for entry in streams[0][1]]

    async def exists(self, run_id: UUID) -> bool:
        async with self._redis() as redis:
            return bool(await redis.exists(_stream(run_id)))

    async def signal(self, run_id: UUID) -> None:
        """Make the worker of the run read its row again."""
        async with self._redis() as redis:
            pipeline: Any = redis.pipeline()
            pipeline.xadd(f"{_stream(run_id)}:signal", {"at": "1"})
            pipeline.expire(f"{_stream(run_id)}:signal", self._ttl)
            await pipeline.execute()

    async def signalled(self, run_id: UUID, *, wait_seconds: float) -> bool:
        """Whether the run was ever signalled; waits at most `wait_seconds` for it."""
        async with self._redis(wait_seconds) as redis:
            wait = max(int(wait_seconds * 1000), 1)
            return bool(await redis.xread({f"{_stream(run_id)}:signal": "0"}, count=1, block=wait))

    async def acquire_turn(self, name: str, every: timedelta) -> bool:
        """True for one caller of all processes in each interval."""
        async with self._redis() as redis:
            return bool(await redis.set(f"easel:turn:{name}", "1", nx=True, px=int(every.total_seconds() * 1000)))

    async def ping(self) -> None:
        async with self._redis() as redis:
            await redis.exists("easel")


@asynccontextmanager
async def open_broker(settings: Settings, *, name: str = "easel") -> AsyncGenerator[Broker]:
    """The broker on `REDIS_URL`, or in this process."""
    url = f"memory://{uuid4()}"
    if settings.redis_url is not None:
        given = settings.redis_url.get_secret_value()
        joint = "&" if "?" in given else "?"
        url = f"{given}{joint}max_connections={REDIS_CONNECTIONS}&socket_connect_timeout={REDIS_TIMEOUT_SECONDS}"
    async with Docket(name=name, url=url) as docket:
        yield Broker(docket, stream_ttl_seconds=settings.stream_ttl_seconds)


def _stream(run_id: UUID) -> str:
    return f"easel:run:{run_id}"


def _record(entry: Entry) -> Record:
    identifier, fields = entry
    seq = int(identifier.split(b"-")[0])
    return Record(seq, fields[b"type"].decode(), fields[b"data"], fields[b"key"].decode())
