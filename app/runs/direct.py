"""Events on their way from the log to a connection without the reader's task.

Why is in docs/decisions/0030-events-go-past-the-readers-tasks.md.
"""

from collections.abc import MutableMapping, Sequence
from functools import partial
from typing import Any

from app.direct_write import EXTENSION, DirectWrite
from app.event_log import Deliver, Record
from app.runs.events import EVENT_CLASSES, LinkedEvent
from app.runs.reader import frame_of

# Others are made for each reader, or end the stream.
_PLAIN = {name for name, kind in EVENT_CLASSES.items() if not kind.terminal and not issubclass(kind, LinkedEvent)}


def deliver_to(scope: MutableMapping[str, Any]) -> Deliver | None:
    """To the client of this request; None on another server than ours."""
    write: DirectWrite | None = scope.get("extensions", {}).get(EXTENSION)
    return write and partial(_deliver, write)


def _deliver(write: DirectWrite, records: Sequence[Record]) -> bool:
    chunk = _frames.of(records)
    return chunk is not None and write(chunk)


class _SharedFrames:
    """The frames of the records that were published last, made once for all their readers."""

    def __init__(self) -> None:
        self._records: Sequence[Record] = ()
        self._chunk: bytes | None = None

    def of(self, records: Sequence[Record]) -> bytes | None:
        """None where one of them is not plain."""
        if records is not self._records:
            self._records = records
            plain = all(one.type in _PLAIN for one in records)
            self._chunk = b"".join(frame_of(one, one.data) for one in records) if plain else None
        return self._chunk


_frames = _SharedFrames()
