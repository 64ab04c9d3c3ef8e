"""A run's events as SSE: live from the fabric, or a short replay from the rows once the stream has expired."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from app.attachments import service as attachments
from app.attachments.links import Links
from app.attachments.schemas import log_form
from app.conversations.models import Message
from app.db import Database
from app.fabric import Fabric, Record
from app.runs.log import TERMINAL, for_reader, record
from app.runs.models import Run
from app.runs.schemas import RunView

HEARTBEAT_SECONDS = 10.0
HEARTBEAT = b": still here\n\n"
DRAINING = b": draining\n\n"

HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Source:
    """Where a reader's events come from."""

    database: Database
    fabric: Fabric
    links: Links
    draining: asyncio.Event


async def frames(source: Source, tenant_id: UUID, run_id: UUID, after: int) -> AsyncIterator[bytes]:
    """SSE frames of the events numbered past `after`, until the terminal one. Holds no database connection."""
    yield b": connected\n\n"
    while True:
        records = await _next(source, run_id, after)
        if source.draining.is_set():
            yield DRAINING
            return
        for found in records:
            yield await for_reader(found, source.links)
            after = found.seq
            if found.type in TERMINAL:
                return
        if not records:
            yield HEARTBEAT
            for found in await _replay_if_expired(source, tenant_id, run_id):
                yield await for_reader(found, source.links)
                if found.type in TERMINAL:
                    return


async def _next(source: Source, run_id: UUID, after: int) -> list[Record]:
    read = asyncio.create_task(source.fabric.read(run_id, after, wait_seconds=HEARTBEAT_SECONDS))
    drain = asyncio.create_task(source.draining.wait())
    try:
        await asyncio.wait({read, drain}, return_when=asyncio.FIRST_COMPLETED)
        return read.result() if read.done() else []
    finally:
        read.cancel()
        drain.cancel()
        await asyncio.gather(read, drain, return_exceptions=True)


async def _replay_if_expired(source: Source, tenant_id: UUID, run_id: UUID) -> list[Record]:
    return [] if await source.fabric.exists(run_id) else await replay(source.database, tenant_id, run_id)


async def replay(database: Database, tenant_id: UUID, run_id: UUID) -> list[Record]:
    """A short, complete account of an ended run from its rows, numbered from 1; empty while it goes on."""
    async with database.tenant(tenant_id) as session:
        run = await session.get(Run, run_id)
        if run is None or not run.status.ended:
            return []
        message = await session.scalar(select(Message).where(Message.id == run.output_message_id))
        rows = (await attachments.of_messages(session, [run.output_message_id])) if run.output_message_id else {}
    view = RunView.model_validate(run).model_dump(mode="json")
    story: list[tuple[str, dict[str, object]]] = [("run.created", {"run": view}), ("run.started", {"run": view})]
    if message is not None:
        forms = [log_form(row) for row in rows.get(message.id, [])]
        body = {
            "id": str(message.id),
            "role": message.role,
            "text": message.text,
            "attachments": forms,
            "run_id": str(run.id),
            "created_at": message.created_at.isoformat(),
        }
        story.append(("message.started", {"message_id": str(message.id)}))
        story.extend(("attachment.created", {"attachment": form}) for form in forms if form["status"] == "stored")
        story.append(("message.completed", {"message": body}))
    story.append((f"run.{run.status}", {"run": view, **({"error": run.error} if run.error else {})}))
    return [record(run.id, seq, kind, fields) for seq, (kind, fields) in enumerate(story, 1)]
