"""A run's events as SSE: live from the broker, or a short replay from the rows once the stream has expired."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.attachments import service as attachments
from app.attachments.links import Links
from app.attachments.schemas import log_form
from app.broker import BROKER_UNAVAILABLE, Broker, Record
from app.conversations.models import Message
from app.db import Database
from app.errors import CONNECTION_FAULTS, NotFound
from app.runs.log import TERMINAL, for_reader, record
from app.runs.models import Run
from app.runs.schemas import RunView

HEARTBEAT_SECONDS = 10.0
# For a look at the rows between two heartbeats.
LOOK_SECONDS = 3.0
CONNECTED = b": connected\n\n"
HEARTBEAT = b": still here\n\n"
DRAINING = b": draining\n\n"

HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


@dataclass(frozen=True)
class Source:
    """Where a reader's events come from."""

    database: Database
    broker: Broker
    links: Links
    draining: asyncio.Event


async def frames(source: Source, tenant_id: UUID, run_id: UUID, after: int) -> AsyncIterator[bytes]:
    """SSE frames of the events numbered past `after`, until the terminal one or until the run is deleted.

    Holds no database connection.
    """
    yield CONNECTED
    found = await _patiently(_expired(source, tenant_id, run_id))
    while found is not None:
        for one in found:
            yield await for_reader(one, source.links)
            after = one.seq
            if one.type in TERMINAL:
                return
        found = await _next(source, run_id, after)
        if source.draining.is_set():
            yield DRAINING
            return
        if not found:
            yield HEARTBEAT
            look = _unwritten(source, tenant_id, run_id, after) if after else _expired(source, tenant_id, run_id)
            found = await _patiently(look)


async def _next(source: Source, run_id: UUID, after: int) -> list[Record]:
    """What comes within a heartbeat; nothing, too, while the broker is away."""
    read = asyncio.create_task(source.broker.read(run_id, after, wait_seconds=HEARTBEAT_SECONDS))
    drain = asyncio.create_task(source.draining.wait())
    try:
        await asyncio.wait({read, drain}, timeout=HEARTBEAT_SECONDS + 1, return_when=asyncio.FIRST_COMPLETED)
        return read.result() if read.done() else []
    except BROKER_UNAVAILABLE:
        await asyncio.sleep(1)
        return []
    finally:
        read.cancel()
        drain.cancel()
        await asyncio.gather(read, drain, return_exceptions=True)


async def _patiently(look: Awaitable[list[Record]]) -> list[Record] | None:
    """What the rows tell; nothing while the database is away, as a later look will do. None where the run is gone."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await look
    except NotFound:
        return None
    except (*CONNECTION_FAULTS, SQLAlchemyError, TimeoutError):
        return []


async def _expired(source: Source, tenant_id: UUID, run_id: UUID) -> list[Record]:
    """The whole account of a run that has ended, once its live stream is gone."""
    try:
        async with asyncio.timeout(LOOK_SECONDS / 2):
            if await source.broker.exists(run_id):
                return []
    except BROKER_UNAVAILABLE:
        pass
    _, story = await replay(source.database, tenant_id, run_id)
    return story


async def _unwritten(source: Source, tenant_id: UUID, run_id: UUID, after: int) -> list[Record]:
    """The end that the rows tell and the live stream lacks, its worker having died between the two."""
    last_seq, story = await replay(source.database, tenant_id, run_id)
    # A reader who is past the end saw a stream that was lost since: its writer's successor counted from 1 again.
    last_seq = last_seq if after < last_seq else after + 2
    end = [one for one in story if one.type == "message.completed" or one.type in TERMINAL]
    bodies = [json.loads(one.data) for one in end]
    numbered = enumerate(zip(end, bodies, strict=True), last_seq - len(end) + 1)
    return [record(run_id, seq, one.type, {**body, "seq": seq}) for seq, (one, body) in numbered if seq > after]


async def replay(database: Database, tenant_id: UUID, run_id: UUID) -> tuple[int, list[Record]]:
    """The number of an ended run's last event, and a short, complete account of the run from its rows.

    The account is numbered from 1; it is empty while the run goes on. Raises NotFound where there is no such run.
    """
    async with database.tenant(tenant_id) as session:
        run = await session.get(Run, run_id)
        if run is None:
            raise NotFound("run")
        if not run.status.ended:
            return 0, []
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
            "created_at": view["finished_at"],
        }
        story.append(("message.started", {"message_id": str(message.id)}))
        story.extend(("attachment.created", {"attachment": form}) for form in forms if form["status"] == "stored")
        story.append(("message.completed", {"message": body}))
    story.append((f"run.{run.status}", {"run": view, **({"error": run.error} if run.error else {})}))
    return run.last_seq, [record(run.id, seq, kind, fields) for seq, (kind, fields) in enumerate(story, 1)]
