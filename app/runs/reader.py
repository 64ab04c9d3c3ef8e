"""A run's events for one reader: live from the broker, or a short replay from the rows once the stream has expired."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from enum import Enum, auto
from uuid import UUID

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.attachments import service as attachments
from app.attachments.links import Links
from app.broker import BROKER_UNAVAILABLE, Broker
from app.conversations.models import Message
from app.db import Database
from app.errors import CONNECTION_FAULTS, NotFound
from app.event_log import Deliver, Record, Subscription
from app.limits import Permit
from app.runs.access import AccessWatch
from app.runs.events import (
    EVENT_CLASSES,
    Event,
    LinkedEvent,
    MessageCompleted,
    MessageStarted,
    RunCreated,
    RunStarted,
    attachment_event,
    run_ended,
    to_record,
)
from app.runs.models import Run
from app.runs.schemas import RunView

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}

HEARTBEAT_SECONDS = 10.0
# For a query between two heartbeats.
QUERY_SECONDS = 3.0


class Pause(Enum):
    """What a reader gets while there is no event."""

    HEARTBEAT = auto()
    DRAINING = auto()


CONNECTED = b": connected\n\n"
COMMENTS = {Pause.HEARTBEAT: b": still here\n\n", Pause.DRAINING: b": draining\n\n"}


@dataclass(frozen=True)
class EventSource:
    """Where a reader's events come from; `draining` is set when the process is about to end.

    `reader` is the credential with which they came, and `watch` tells when it no longer opens the run.
    """

    database: Database
    broker: Broker
    draining: asyncio.Event
    deliver: Deliver | None
    reader: str
    watch: AccessWatch


async def follow(source: EventSource, tenant_id: UUID, run_id: UUID, after: int) -> AsyncIterator[list[Record] | Pause]:
    """The events numbered past `after`, as many at a time as have come, to the terminal one or the run's deletion.

    Without those that `source.deliver` took. Ends where the reader loses access. Holds no database connection.
    """
    with (
        source.watch.over(source.reader, tenant_id, run_id) as lost,
        source.broker.events.subscribe(run_id, after, source.deliver) as subscription,
    ):
        found = await _unless_unavailable(_expired(source, tenant_id, run_id))
        while found is not None:
            if found:
                yield found
                after = found[-1].seq
                if EVENT_CLASSES[found[-1].type].terminal:
                    return
            found = await _next(subscription)
            after = max(after, subscription.position)
            if lost.is_set():
                return
            if source.draining.is_set():
                yield Pause.DRAINING
                return
            if not found:
                yield Pause.HEARTBEAT
                query = _unwritten(source, tenant_id, run_id, after) if after else _expired(source, tenant_id, run_id)
                found = await _unless_unavailable(query)


async def frames(events: AsyncIterator[list[Record] | Pause], links: Links, permit: Permit) -> AsyncIterator[bytes]:
    """Chunks of frames: what has come while the reader was busy goes out at once. The end releases `permit`."""
    with permit:
        yield CONNECTED
        async for found in events:
            yield COMMENTS[found] if isinstance(found, Pause) else b"".join([await _frame(one, links) for one in found])


async def _frame(record: Record, links: Links) -> bytes:
    """Events without links go out as the bytes they were written."""
    kind = EVENT_CLASSES[record.type]
    if not issubclass(kind, LinkedEvent):
        return frame_of(record, record.data)
    try:
        event = await kind.model_validate_json(record.data).with_links(links)
    except ValidationError:
        # Of an earlier release, in a stream that began before this one: the run's messages have what is left out.
        log.warning("events.unreadable", extra={"type": record.type})
        return b""
    return frame_of(record, event.model_dump_json().encode())


def frame_of(record: Record, data: bytes) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (record.seq, record.type.encode(), data)


async def _next(subscription: Subscription) -> list[Record]:
    """The events that come within a heartbeat; none while the broker is unavailable."""
    try:
        return await subscription.next(HEARTBEAT_SECONDS)
    except BROKER_UNAVAILABLE:
        await asyncio.sleep(1)
        return []


async def _unless_unavailable(query: Awaitable[list[Record]]) -> list[Record] | None:
    """None where the run is deleted; no events while the database is unavailable, as a later query will find them."""
    try:
        async with asyncio.timeout(QUERY_SECONDS):
            return await query
    except NotFound:
        return None
    except (*CONNECTION_FAULTS, SQLAlchemyError, TimeoutError):
        return []


async def _expired(source: EventSource, tenant_id: UUID, run_id: UUID) -> list[Record]:
    """The replay of a run that has ended, once its live stream has expired."""
    try:
        async with asyncio.timeout(QUERY_SECONDS / 2):
            if await source.broker.events.exists(run_id):
                return []
    except BROKER_UNAVAILABLE:
        pass
    _, events = await replay(source.database, tenant_id, run_id)
    return [to_record(event, run_id, seq) for seq, event in enumerate(events, 1)]


async def _unwritten(source: EventSource, tenant_id: UUID, run_id: UUID, after: int) -> list[Record]:
    """The end that the rows hold and the live stream lacks, because its worker died between the two."""
    last_seq, events = await replay(source.database, tenant_id, run_id)
    # A reader past the end has seen a stream that was lost since: the next attempt counted from 1 again.
    last_seq = last_seq if after < last_seq else after + 2
    end = [event for event in events if event.terminal or isinstance(event, MessageCompleted)]
    numbered = enumerate(end, last_seq - len(end) + 1)
    return [to_record(event, run_id, seq) for seq, event in numbered if seq > after]


async def replay(database: Database, tenant_id: UUID, run_id: UUID) -> tuple[int, list[Event]]:
    """The number of an ended run's last event, and a short, complete list of its events made from its rows.

    The list is empty while the run goes on. Raises NotFound where there is no such run.
    """
    async with database.tenant(tenant_id) as session:
        run = await session.get(Run, run_id)
        if run is None:
            raise NotFound("run")
        if not run.status.ended:
            return 0, []
        message = await session.scalar(select(Message).where(Message.id == run.output_message_id))
        rows = (await attachments.of_messages(session, [run.output_message_id])).get(run.output_message_id, [])
    view = RunView.model_validate(run)
    events: list[Event] = [RunCreated(run=view)]
    events += [RunStarted(run=view)] if run.started_at else []
    if message is not None:
        images = [event for row in rows if (event := attachment_event(row))]
        events += [MessageStarted(message_id=message.id), *images, MessageCompleted.of(message, rows, run)]
    return run.last_seq, [*events, run_ended(view)]
