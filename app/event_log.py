"""Where the events of runs are kept and followed: one log of numbered records for each run.

`MemoryEventLog` is for a service of one process; `app/redis_event_log.py` is for several.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID


@dataclass(frozen=True)
class Record:
    """One event in a log: its number, its type, its JSON bytes.

    `key` identifies the event whichever attempt writes it; readers do not see it.
    """

    seq: int
    type: str
    data: bytes
    key: str = ""


# Passes records on to the reader at once, or refuses them.
Deliver = Callable[[Sequence[Record]], bool]


class Subscription:
    """A reader's position in a run's log. Records are pushed to it; what it missed it reads from the log.

    What comes while the reader waits is offered to `deliver`, so that its task need not run for each event.
    """

    def __init__(
        self, read: Callable[[int], Awaitable[list[Record]]], after: int, deliver: Deliver | None = None
    ) -> None:
        self.position = after
        """The number of the last record that was returned or delivered."""
        self._read = read
        self._deliver = deliver
        self._delivered_at = 0.0
        self._queued: list[Record] = []
        self._caught_up = False
        self._waiter: asyncio.Future[None] | None = None
        # By `wake`, which may come while the reader is busy.
        self._woken = False

    async def next(self, wait_seconds: float) -> list[Record]:
        """All records that this reader has not got yet; none after so long without a record, or once woken."""
        if not self._caught_up and (found := await self._catch_up()):
            return found
        if not self._queued and not await self._wait(wait_seconds):
            return await self._catch_up()
        if not self._caught_up:
            return await self._catch_up()
        return self._take(self._queued)

    def push(self, records: Sequence[Record]) -> None:
        newest = self._queued[-1].seq if self._queued else self.position
        if not records or records[-1].seq <= newest:
            return
        if self._caught_up and records[0].seq == newest + 1:
            if self._is_waiting() and self._deliver is not None and self._deliver(records):
                self.position, self._delivered_at = records[-1].seq, time.monotonic()
                return
            self._queued.extend(records)
        else:
            self._caught_up = False
        self._end_wait()

    def wake(self) -> None:
        """Let the reader's wait, this one or its next, end without a record."""
        self._woken = True
        self._end_wait()

    def _end_wait(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _is_waiting(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    async def _catch_up(self) -> list[Record]:
        """What the log holds, and what is pushed while it is read: a record may be in both."""
        self._queued, self._caught_up = [], True
        try:
            found = await self._read(self.position)
        except BaseException:
            self._caught_up = False
            raise
        newest = found[-1].seq if found else self.position
        return self._take([*found, *(one for one in self._queued if one.seq > newest)])

    def _take(self, records: list[Record]) -> list[Record]:
        self._queued = []
        if records:
            self.position = records[-1].seq
        return records

    async def _wait(self, seconds: float) -> bool:
        """False after so long without a record."""
        self._waiter = asyncio.get_running_loop().create_future()
        self._delivered_at = time.monotonic()
        try:
            if self._woken:
                self._waiter.set_result(None)
            while (left := self._delivered_at + seconds - time.monotonic()) > 0 and not self._waiter.done():
                await asyncio.wait({self._waiter}, timeout=left)
            return self._waiter.done()
        finally:
            self._waiter, self._woken = None, False


class EventLog(ABC):
    """Methods but `subscribe` and `wake_readers` raise BROKER_UNAVAILABLE while Redis does not answer."""

    def __init__(self) -> None:
        self._subscriptions: defaultdict[UUID, set[Subscription]] = defaultdict(set)

    @abstractmethod
    async def append(self, run_id: UUID, records: list[Record], *, attempt: int = 0) -> bool:
        """Write records as this attempt; a number that is already in the log keeps its first record.

        False, and nothing is written, once a later attempt has written or fenced the log.
        """

    @abstractmethod
    async def fence(self, run_id: UUID, attempt: int) -> list[Record]:
        """Shut earlier attempts out of the log, and return all that they have written."""

    @abstractmethod
    async def read(self, run_id: UUID, after: int) -> list[Record]:
        """The records numbered past `after`."""

    @abstractmethod
    async def exists(self, run_id: UUID) -> bool: ...

    @abstractmethod
    async def signal(self, run_id: UUID) -> None:
        """Make the worker of the run read its row again."""

    @abstractmethod
    async def signalled(self, run_id: UUID, seen: str, *, wait_seconds: float) -> str:
        """The run's newest signal; waits at most `wait_seconds` for one after `seen`, which is "" at first."""

    @abstractmethod
    def release(self, run_id: UUID) -> None:
        """This process appends nothing more as an attempt at the run."""

    @contextmanager
    def subscribe(self, run_id: UUID, after: int, deliver: Deliver | None = None) -> Generator[Subscription]:
        """Follow the records numbered past `after` until the block ends."""
        subscription = Subscription(lambda last: self.read(run_id, last), after, deliver)
        subscriptions = self._subscriptions[run_id]
        subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            subscriptions.discard(subscription)
            if not subscriptions:
                self._subscriptions.pop(run_id, None)

    def wake_readers(self) -> None:
        """Let every reader look whether the process is about to end."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.wake()

    def _publish(self, run_id: UUID, records: Sequence[Record]) -> None:
        for subscription in self._subscriptions.get(run_id, ()):
            subscription.push(records)


@dataclass
class _Log:
    attempt: int = 0
    records: list[Record] = field(default_factory=list[Record])
    signals: int = 0
    signalled: asyncio.Event = field(default_factory=asyncio.Event)
    expires_at: float = 0.0


class MemoryEventLog(EventLog):
    """Lives as long as the process, which executes the runs that it serves."""

    def __init__(self, *, ttl_seconds: int) -> None:
        super().__init__()
        self._ttl = ttl_seconds
        # The log that was written last is the last one.
        self._logs: dict[UUID, _Log] = {}

    async def append(self, run_id: UUID, records: list[Record], *, attempt: int = 0) -> bool:
        log = self._touch(run_id)
        if attempt < log.attempt:
            return False
        log.attempt = attempt
        last = log.records[-1].seq if log.records else 0
        new = [one for one in records if one.seq > last]
        log.records.extend(new)
        self._publish(run_id, new)
        return True

    async def fence(self, run_id: UUID, attempt: int) -> list[Record]:
        await self.append(run_id, [], attempt=attempt)
        return list(self._logs[run_id].records)

    async def read(self, run_id: UUID, after: int) -> list[Record]:
        self._drop_expired()
        log = self._logs.get(run_id)
        return [one for one in log.records if one.seq > after] if log else []

    async def exists(self, run_id: UUID) -> bool:
        self._drop_expired()
        return run_id in self._logs and bool(self._logs[run_id].records)

    async def signal(self, run_id: UUID) -> None:
        log = self._touch(run_id)
        log.signals += 1
        log.signalled.set()

    async def signalled(self, run_id: UUID, seen: str, *, wait_seconds: float) -> str:
        log = self._touch(run_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                while log.signals <= int(seen or 0):
                    log.signalled.clear()
                    await log.signalled.wait()
        return str(log.signals)

    def release(self, run_id: UUID) -> None:
        """Readers are here anyway."""

    def _touch(self, run_id: UUID) -> _Log:
        self._drop_expired()
        log = self._logs[run_id] = self._logs.pop(run_id, None) or _Log()
        log.expires_at = time.monotonic() + self._ttl
        return log

    def _drop_expired(self) -> None:
        oldest = next(iter(self._logs), None)
        while oldest is not None and self._logs[oldest].expires_at < time.monotonic():
            del self._logs[oldest]
            oldest = next(iter(self._logs), None)
