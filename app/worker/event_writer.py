"""Writes a run's events into its stream: numbered without gaps, each once, whichever attempt gets to write it."""

import asyncio
import logging
from collections.abc import Sequence
from uuid import UUID

from app.event_log import EventLog, Record
from app.runs.events import Event, to_record

WRITE_BATCH = 200
RETRY_SECONDS = 0.5
FLUSH_SECONDS = 10.0

log = logging.getLogger(__name__)


class EventWriter:
    """Writes in batches, and never makes the agent loop wait.

    Every event has a key that each attempt derives alike; keys that earlier attempts wrote (`written`) are dropped.
    While the broker is unavailable events wait in memory; once a later attempt writes, they are dropped.
    """

    def __init__(self, event_log: EventLog, run_id: UUID, attempt: int, written: Sequence[Record]) -> None:
        self.seq = written[-1].seq if written else 0
        self._event_log = event_log
        self._run_id = run_id
        self._attempt = attempt
        self._keys = {record.key for record in written}
        self._queue: list[Record] = []
        self._writing: asyncio.Task[None] | None = None

    def has(self, key: str) -> bool:
        return key in self._keys

    def emit(self, event: Event, key: str = "") -> None:
        """`key` is by default the event's type, which fits events that a run has once."""
        key = key or event.type
        if key in self._keys:
            return
        self._keys.add(key)
        self.seq += 1
        self._queue.append(to_record(event, self._run_id, self.seq, key))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while batch := self._queue[:WRITE_BATCH]:
            try:
                held = await self._event_log.append(self._run_id, batch, attempt=self._attempt)
            except Exception:
                log.warning("events.not_written", extra={"run_id": str(self._run_id)}, exc_info=True)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            del self._queue[: len(batch) if held else None]

    async def flush(self) -> None:
        """Return when all events are written, or given up: the rows hold the end of the run as well."""
        if self._writing is not None and not self._writing.done():
            _, late = await asyncio.wait({self._writing}, timeout=FLUSH_SECONDS)
            if late:
                self._writing.cancel()
                log.error("events.given_up", extra={"run_id": str(self._run_id), "count": len(self._queue)})

    def close(self) -> None:
        """This worker writes no more events of the run."""
        self._event_log.release(self._run_id)
