"""The event log of a run: written once by its worker, read by anyone who may, with links made for each reader."""

import asyncio
import json
import logging
from typing import Any, cast
from uuid import UUID

from app.attachments.links import Grant, Links
from app.attachments.schemas import from_log
from app.broker import Broker, Record

LINKED = frozenset({"attachment.created", "message.completed", "image.partial"})
TERMINAL = frozenset({"run.completed", "run.failed", "run.cancelled"})
# No event is longer; a delta that would be is split.
MAX_DELTA_CHARACTERS = 10_000
WRITE_BATCH = 200
RETRY_SECONDS = 0.5
FLUSH_SECONDS = 10.0

log = logging.getLogger(__name__)


def record(run_id: UUID, seq: int, kind: str, fields: dict[str, Any], mark: str = "") -> Record:
    body = {"type": kind, "seq": seq, "run_id": str(run_id), **fields}
    return Record(seq, kind, json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=str).encode(), mark)


class EventLog:
    """Numbers events without gaps and writes them in batches, never making the turn wait.

    While the broker is away they wait in memory; once a later attempt writes, they are dropped.
    """

    def __init__(self, broker: Broker, run_id: UUID, attempt: int, *, seq: int = 0) -> None:
        self.seq = seq
        self._broker = broker
        self._run_id = run_id
        self._attempt = attempt
        self._queue: list[Record] = []
        self._writer: asyncio.Task[None] | None = None

    def emit(self, kind: str, *, mark: str = "", **fields: Any) -> None:
        self.seq += 1
        self._queue.append(record(self._run_id, self.seq, kind, fields, mark))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while batch := self._queue[:WRITE_BATCH]:
            try:
                held = await self._broker.append(self._run_id, batch, attempt=self._attempt)
            except Exception:
                log.warning("events.not_written", extra={"run_id": str(self._run_id)}, exc_info=True)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            del self._queue[: len(batch) if held else None]

    async def flush(self) -> None:
        """Return when all that was emitted is written, or given up: the rows tell the end as well."""
        if self._writer is not None and not self._writer.done():
            _, late = await asyncio.wait({self._writer}, timeout=FLUSH_SECONDS)
            if late:
                self._writer.cancel()
                log.error("events.given_up", extra={"run_id": str(self._run_id), "count": len(self._queue)})


async def for_reader(found: Record, links: Links) -> bytes:
    """An SSE frame; events without links go out as the bytes they were written."""
    data = found.data
    if found.type in LINKED:
        data = json.dumps(await _with_links(json.loads(data), links), ensure_ascii=False, default=str).encode()
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (found.seq, found.type.encode(), data)


async def _with_links(event: dict[str, Any], links: Links) -> dict[str, Any]:
    if "attachment" in event:
        event["attachment"] = await from_log(event["attachment"], links)
    if "message" in event:
        message = cast(dict[str, Any], event["message"])
        message["attachments"] = [await from_log(form, links) for form in message["attachments"]]
    if "storage_key" in event:
        key = str(event.pop("storage_key"))
        link = await links.to(Grant(key, key.rpartition("/")[2], str(event["mime_type"])))
        event["url"] = link.url
    return event
