"""What the readers of a run are told of its images, and the rows of those that never came."""

import json
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app import metrics
from app.attachments import service as attachments
from app.attachments.models import Attachment, AttachmentError, AttachmentStatus
from app.attachments.schemas import AttachmentView
from app.db import uuid7
from app.error_codes import ErrorCode
from app.event_log import Record
from app.runs.events import EVENT_CLASSES, AttachmentCreated, AttachmentFailed, AttachmentUpdated, Event
from app.worker.event_writer import EventWriter
from app.worker.image_rows import ImageRows

NOT_STORED = AttachmentError(
    code=ErrorCode.STORAGE_UNAVAILABLE,
    detail="The image is safe but not stored yet; it will be here once the object storage answers.",
    retryable=True,
)


class ImageReports:
    """Emits the events; `written` are those of earlier attempts, which told of images as well."""

    def __init__(self, events: EventWriter, rows: ImageRows, written: Sequence[Record] = ()) -> None:
        self._events = events
        self._rows = rows
        # Told to be there, and not yet that their smaller copies are.
        self._without_copies: set[UUID] = set()
        # By tool call: the object_id that was told, and the last reason why the image is not there.
        self._failed: dict[str | None, tuple[UUID, AttachmentError]] = {}
        for record in written:
            if (kind := EVENT_CLASSES.get(record.type)) in (AttachmentCreated, AttachmentUpdated, AttachmentFailed):
                # By field: an earlier release may have written it.
                self._remember(kind, json.loads(record.data))

    def _remember(self, kind: type[Event] | None, told: dict[str, Any]) -> None:
        if kind is AttachmentCreated:
            self._without_copies.add(UUID(told["attachment"]["object_id"]))
        elif kind is AttachmentUpdated:
            self._without_copies.discard(UUID(told["attachment"]["object_id"]))
        # The row of an image that waits for the storage was there before the event.
        elif kind is AttachmentFailed and told["object_id"] and told["code"] != NOT_STORED.code:
            error = AttachmentError(code=told["code"], detail=told["detail"], retryable=told["retryable"])
            self._failed[told["tool_call_id"]] = (UUID(told["object_id"]), error)

    def row(self, key: str, row: Attachment) -> None:
        """An image whose row is there; `key` is that of the event where it is stored."""
        if row.status == AttachmentStatus.STORED:
            self._events.emit(AttachmentCreated(attachment=AttachmentView.of(row)), key)
            self._without_copies.add(row.id)
        else:
            self._fail(row.id, row.tool_call_id, row.error or NOT_STORED, which=str(row.id))

    def failed(self, tool_call_id: str | None, code: ErrorCode, detail: str, *, retryable: bool) -> None:
        """An image that has no row: it gets one with the run's end, unless it comes after all."""
        error = AttachmentError(code=code, detail=detail.replace("\0", ""), retryable=retryable)
        object_id = self._failed[tool_call_id][0] if tool_call_id in self._failed else uuid7()
        if self._fail(object_id, tool_call_id, error, which=str(tool_call_id)):
            self._failed[tool_call_id] = (object_id, error)

    def _fail(self, object_id: UUID, tool_call_id: str | None, error: AttachmentError, *, which: str) -> bool:
        """False where it was told before."""
        event = AttachmentFailed(tool_call_id=tool_call_id, object_id=object_id, **error.model_dump())
        key = f"{event.type}:{which}:{error.code}"
        if self._events.has(key):
            return False
        metrics.IMAGE_FAILURES.labels(error.code).inc()
        self._events.emit(event, key)
        return True

    def failed_rows(self) -> list[Attachment]:
        """New rows, of the images that have not come by now, also not under another attempt."""
        return [
            self._rows.new_failed(object_id, tool_call_id, error)
            for tool_call_id, (object_id, error) in self._failed.items()
            if (tool_call_id or "") not in self._rows.ids
        ]

    async def look_for_copies(self, session: AsyncSession) -> None:
        if self._without_copies:
            self.tell_copies(await attachments.with_copies(session, list(self._without_copies)))

    def tell_copies(self, rows: Iterable[Attachment]) -> None:
        """Of those that have their smaller copies by now, once."""
        for row in rows:
            if row.id in self._without_copies and row.variants is not None:
                self._without_copies.discard(row.id)
                if row.variants or row.blurhash:
                    event = AttachmentUpdated(attachment=AttachmentView.of(row))
                    self._events.emit(event, f"{event.type}:{row.id}")
