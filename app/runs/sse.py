"""A run's events as server-sent events, with links made for their reader."""

from collections.abc import AsyncIterator

from app.attachments.links import Links
from app.event_log import Record
from app.limits import Place
from app.runs.events import EVENT_CLASSES, LinkedEvent
from app.runs.reader import Pause

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}

CONNECTED = b": connected\n\n"
COMMENTS = {Pause.HEARTBEAT: b": still here\n\n", Pause.DRAINING: b": draining\n\n"}


async def frames(events: AsyncIterator[list[Record] | Pause], links: Links, place: Place) -> AsyncIterator[bytes]:
    """Chunks of frames: what has come while the reader was busy goes out at once. The end gives back `place`."""
    with place:
        yield CONNECTED
        async for found in events:
            yield COMMENTS[found] if isinstance(found, Pause) else b"".join([await _frame(one, links) for one in found])


async def _frame(record: Record, links: Links) -> bytes:
    """Events without links go out as the bytes they were written."""
    data, kind = record.data, EVENT_CLASSES[record.type]
    if issubclass(kind, LinkedEvent):
        event = await kind.model_validate_json(data).with_links(links)
        data = event.model_dump_json().encode()
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (record.seq, record.type.encode(), data)
