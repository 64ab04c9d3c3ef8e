"""The event log of a run: written once by its worker, read by anyone who may, with links made for each reader."""

import asyncio
import json
from typing import Any, cast
from uuid import UUID

from app.attachments.links import Grant, Links
from app.attachments.schemas import from_log
from app.fabric import Fabric, Record

LINKED = frozenset({"attachment.created", "message.completed", "image.partial"})
TERMINAL = frozenset({"run.completed", "run.failed", "run.cancelled"})
# No event is longer; a delta that would be is split.
MAX_DELTA_CHARACTERS = 10_000


def record(run_id: UUID, seq: int, kind: str, fields: dict[str, Any]) -> Record:
    body = {"type": kind, "seq": seq, "run_id": str(run_id), **fields}
    return Record(seq, kind, json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=str).encode())


class EventLog:
    """Numbers events without gaps and writes them in batches, never making the turn wait."""

    def __init__(self, fabric: Fabric, run_id: UUID) -> None:
        self.seq = 0
        self._fabric = fabric
        self._run_id = run_id
        self._queue: list[Record] = []
        self._written = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    def emit(self, kind: str, **fields: Any) -> None:
        self.seq += 1
        self._queue.append(record(self._run_id, self.seq, kind, fields))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            await self._fabric.append(self._run_id, batch)

    async def flush(self) -> None:
        """Return when all that was emitted is written."""
        while self._writer is not None and (self._queue or not self._writer.done()):
            await self._writer


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
