"""The fabric between processes: docket tasks and live event streams, on Redis or in process."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from docket import Docket, Worker

from app.settings import Settings

log = logging.getLogger(__name__)

Entry = tuple[bytes, dict[bytes, bytes]]

READ_BATCH = 200
REDIS_TIMEOUT_SECONDS = 5
REDIS_CONNECTIONS = 500
# A worker that dies is noticed after this long; below the run's lease, so that a redelivered task finds it free.
REDELIVERY = timedelta(seconds=20)
TASK_CHECK = timedelta(milliseconds=5)


@dataclass(frozen=True)
class Record:
    """One event as it lies in a stream: its number, its type, its JSON bytes."""

    seq: int
    type: str
    data: bytes


class Fabric:
    """Tasks (`docket`) and one stream of numbered events for each run."""

    def __init__(self, docket: Docket, *, stream_ttl_seconds: int) -> None:
        self.docket = docket
        self._ttl = stream_ttl_seconds

    @asynccontextmanager
    async def _redis(self) -> AsyncGenerator[Any]:
        # docket types only the commands that it uses itself.
        async with self.docket.redis() as redis:
            yield redis

    async def append(self, run_id: UUID, records: list[Record]) -> None:
        """Write records; one whose number is already taken is left as the first writer wrote it."""
        key = _stream(run_id)
        async with self._redis() as redis:
            pipeline: Any = redis.pipeline()
            for record in records:
                pipeline.xadd(key, {"type": record.type, "data": record.data}, id=f"{record.seq}-0")
            pipeline.expire(key, self._ttl)
            results = await pipeline.execute(raise_on_error=False)
        # The first event is written by the API and by the worker: one of them is refused, by design.
        pairs = zip(records, results, strict=False)
        refused = sum(record.seq > 1 and not isinstance(result, bytes) for record, result in pairs)
        if refused:
            log.warning("events.already_written", extra={"run_id": str(run_id), "count": refused})

    async def read(self, run_id: UUID, after: int, *, wait_seconds: float) -> list[Record]:
        """Records numbered past `after`; waits for the first at most `wait_seconds`, then returns none."""
        wait = max(int(wait_seconds * 1000), 1)
        async with self._redis() as redis:
            answer: Any = await redis.xread({_stream(run_id): f"{after}-0"}, count=READ_BATCH, block=wait)
        if not answer:
            return []
        # RESP3 answers with a mapping, RESP2 and the in-process server with pairs.
        streams = cast(list[tuple[bytes, list[Entry]]], list(answer.items() if hasattr(answer, "items") else answer))
        return [_record(entry) for entry in streams[0][1]]

    async def exists(self, run_id: UUID) -> bool:
        async with self._redis() as redis:
            return bool(await redis.exists(_stream(run_id)))

    async def last_seq(self, run_id: UUID) -> int:
        """The number of the newest event; 0 where there is no stream."""
        async with self._redis() as redis:
            newest: Any = await redis.xrevrange(_stream(run_id), count=1)
        return _record(newest[0]).seq if newest else 0

    async def signal(self, run_id: UUID) -> None:
        """Tell whoever executes the run to look at its row again."""
        async with self._redis() as redis:
            pipeline: Any = redis.pipeline()
            pipeline.xadd(f"{_stream(run_id)}:signal", {"at": "1"})
            pipeline.expire(f"{_stream(run_id)}:signal", self._ttl)
            await pipeline.execute()

    async def signalled(self, run_id: UUID, *, wait_seconds: float) -> bool:
        """Whether the run was ever signalled; waits at most `wait_seconds` for it."""
        async with self._redis() as redis:
            wait = max(int(wait_seconds * 1000), 1)
            return bool(await redis.xread({f"{_stream(run_id)}:signal": "0"}, count=1, block=wait))

    async def ping(self) -> None:
        async with asyncio.timeout(REDIS_TIMEOUT_SECONDS), self._redis() as redis:
            await redis.exists("easel")


@asynccontextmanager
async def open_fabric(settings: Settings, *, name: str = "easel") -> AsyncGenerator[Fabric]:
    """The fabric on `REDIS_URL`, or in this process."""
    url = f"memory://{name}"
    if settings.redis_url is not None:
        given = settings.redis_url.get_secret_value()
        joint = "&" if "?" in given else "?"
        url = f"{given}{joint}max_connections={REDIS_CONNECTIONS}&socket_connect_timeout={REDIS_TIMEOUT_SECONDS}"
    async with Docket(name=name, url=url) as docket:
        yield Fabric(docket, stream_ttl_seconds=settings.stream_ttl_seconds)


@asynccontextmanager
async def running_worker(fabric: Fabric, settings: Settings) -> AsyncGenerator[asyncio.Task[None]]:
    """Execute tasks until the block ends; what still runs then is cancelled."""
    async with Worker(
        fabric.docket,
        concurrency=settings.worker_concurrency,
        redelivery_timeout=REDELIVERY,
        minimum_check_interval=TASK_CHECK,
        scheduling_resolution=timedelta(milliseconds=100),
    ) as worker:
        task = asyncio.create_task(worker.run_forever())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _stream(run_id: UUID) -> str:
    return f"easel:run:{run_id}"


def _record(entry: Entry) -> Record:
    identifier, fields = entry
    return Record(int(identifier.split(b"-")[0]), fields[b"type"].decode(), fields[b"data"])
