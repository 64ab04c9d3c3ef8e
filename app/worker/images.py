"""Takes a run's images from the provider into storage, each announced once it is there."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.attachments import variants
from app.attachments.ingest import ingest, insert_once, new_attachment
from app.attachments.models import Attachment, AttachmentError, AttachmentKind, AttachmentStatus
from app.attachments.schemas import AttachmentView
from app.error_codes import ErrorCode
from app.images.inspect import Decoded, UnreadableImage, examine, facts_of
from app.provider.model import GeneratedImage, PartialImage
from app.runs.events import AttachmentCreated, AttachmentFailed, ImagePartial
from app.runs.models import Run
from app.storage import keys
from app.storage.store import StorageError
from app.worker.context import WorkerContext
from app.worker.event_writer import EventWriter
from app.worker.image_options import ImageOptions

log = logging.getLogger(__name__)

PREVIEW_SECONDS = 2.0
# How long the next image may take after the text has ended. The store has its own, shorter limit: this one is for a
# database that restarts, and longer than a worker waits for that.
FINISH_SECONDS = 20.0


class RunImages:
    """Receives a run's images from the model (an ImageSink) and stores them without making the text wait."""

    def __init__(self, ctx: WorkerContext, run: Run, events: EventWriter, options: ImageOptions) -> None:
        # The tool_call_ids whose bytes have arrived.
        self.received: set[str] = set()
        # What the request says: its text, and the image that an edit in this run starts from.
        self.prompt = ""
        self.parent_object_id: UUID | None = None
        self._ctx = ctx
        self._run = run
        self._events = events
        self._options = options
        self._previews: dict[str, list[asyncio.Task[None]]] = {}
        self._images: list[asyncio.Task[None]] = []
        self._stored: set[str] = set()
        self._unreadable: dict[str, str] = {}
        self._preview_places = ctx.intake.previews.of_run()
        self._places = ctx.intake.images.of_run()

    def on_partial(self, partial: PartialImage) -> None:
        if self._events.has(_partial_key(partial)):
            return
        tasks = self._previews.setdefault(partial.tool_call_id, [])
        tasks.append(asyncio.create_task(self._show(partial, before=tasks[-1] if tasks else None)))

    def on_image(self, image: GeneratedImage) -> None:
        self.received.add(image.tool_call_id)
        # A tool call has one row: what is stored, spooled or rejected by its size is not tried again.
        if not self._events.has(_created_key(image.tool_call_id)) and image.tool_call_id not in self._stored:
            self._images.append(asyncio.create_task(self._store(image)))

    def abandon(self) -> None:
        """Leave what is under way to the next attempt, which will receive the same images."""
        for task in self._tasks():
            task.cancel()

    async def finish_storing(self) -> None:
        """Return when every image is stored, rejected or waiting in the spool."""
        late, before = set(self._tasks()), 0
        while late and len(late) != before:
            before = len(late)
            _, late = await asyncio.wait(late, timeout=FINISH_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for tool_call_id, detail in self._unreadable.items():
            if tool_call_id not in self._stored:
                self.emit_failure(tool_call_id, ErrorCode.IMAGE_UNREADABLE, detail, retryable=False)

    def emit_failure(
        self, tool_call_id: str | None, code: ErrorCode, detail: str, *, retryable: bool, object_id: UUID | None = None
    ) -> None:
        event = AttachmentFailed(
            tool_call_id=tool_call_id, object_id=object_id, code=code, detail=detail, retryable=retryable
        )
        self._events.emit(event, f"{event.type}:{tool_call_id}:{code}")

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [*self._images, *(task for tasks in self._previews.values() for task in tasks)]

    async def _show(self, partial: PartialImage, *, before: asyncio.Task[None] | None) -> None:
        """A preview is a small object that expires; if it cannot be stored, the reader only misses it."""
        try:
            async with self._preview_places.admit(partial.content) as data:
                facts = await facts_of(data)
                key = keys.preview_key(
                    self._run.tenant_id, self._run.id, partial.tool_call_id, partial.index, facts.extension
                )
                async with self._ctx.intake.preview_outage.watching(PREVIEW_SECONDS):
                    await self._ctx.store.put(key, data, mime_type=facts.mime_type)
        except (UnreadableImage, StorageError, TimeoutError) as error:
            log.warning("image.preview_failed", extra={"tool_call_id": partial.tool_call_id, "error": str(error)})
            return
        if before is not None:
            await asyncio.wait({before})
        event = ImagePartial(
            tool_call_id=partial.tool_call_id,
            index=partial.index,
            url=key,
            mime_type=facts.mime_type,
            width=facts.width,
            height=facts.height,
        )
        self._events.emit(event, _partial_key(partial))

    async def _store(self, image: GeneratedImage) -> None:
        tool_call_id, content = image.tool_call_id, image.content
        if content.data is None and content.size and not content.is_spilled:
            self.emit_failure(tool_call_id, ErrorCode.IMAGE_TOO_LARGE, self._too_large(content.size), retryable=False)
            return
        try:
            async with self._places.admit(content) as data:
                row = await self._ingest(image, await examine(data))
        except UnreadableImage as error:
            log.warning("image.unreadable", extra={"tool_call_id": tool_call_id, "error": str(error)})
            # Reported at the end of the turn: the provider's last event may still bring the whole image.
            self._unreadable[tool_call_id] = str(error)
            return
        except Exception:
            log.exception("image.ingest_failed", extra={"tool_call_id": tool_call_id})
            self.emit_failure(tool_call_id, ErrorCode.INGEST_FAILED, "The image could not be recorded.", retryable=True)
            return
        # Frees the bytes, which the wait for the previews must not keep.
        del image, content, data
        self._stored.add(tool_call_id)
        if previews := self._previews.get(tool_call_id):
            await asyncio.wait(previews, timeout=PREVIEW_SECONDS)
        self._announce(tool_call_id, row)
        if row.status == AttachmentStatus.STORED:
            await variants.request(self._ctx.broker, row.tenant_id, row.id)

    async def _ingest(self, image: GeneratedImage, decoded: Decoded) -> Attachment:
        ctx, row = self._ctx, self._new_row(image, decoded)
        if row.size_bytes > ctx.settings.image_output_max_bytes:
            row.status = AttachmentStatus.FAILED
            row.error = AttachmentError(code=ErrorCode.IMAGE_TOO_LARGE, detail=self._too_large(row.size_bytes))
            return await insert_once(ctx.database, row)
        return await ingest(ctx.database, ctx.store, ctx.spool, ctx.intake.image_outage, row, decoded.data)

    def _too_large(self, size_bytes: int) -> str:
        allowed = self._ctx.settings.image_output_max_mb
        return f"The image has {size_bytes / 1024**2:.1f} MB; IMAGE_OUTPUT_MAX_MB allows {allowed:g} MB."

    def _new_row(self, image: GeneratedImage, decoded: Decoded) -> Attachment:
        requested = self._options(image.agent_key)
        _log_other_type(image, decoded, requested)
        options = {**requested, **image.options}
        edited = self._run.options.edit is not None or options.get("action") == "edit"
        return new_attachment(
            decoded.facts,
            kind=AttachmentKind.GENERATED,
            tenant_id=self._run.tenant_id,
            user_id=self._run.user_id,
            conversation_id=self._run.conversation_id,
            run_id=self._run.id,
            message_id=self._run.output_message_id,
            agent_key=image.agent_key,
            size_bytes=len(decoded.data),
            sha256=decoded.sha256,
            tool_call_id=image.tool_call_id,
            prompt=self.prompt,
            revised_prompt=image.revised_prompt,
            options=options,
            parent_object_id=self.parent_object_id if edited else None,
        )

    def _announce(self, tool_call_id: str, row: Attachment) -> None:
        if row.status == AttachmentStatus.STORED:
            self._events.emit(AttachmentCreated(attachment=AttachmentView.of(row)), _created_key(tool_call_id))
        elif row.error is not None:
            self.emit_failure(tool_call_id, row.error.code, row.error.detail, retryable=False, object_id=row.id)
        else:
            detail = "The image is safe but not stored yet; it will be here once the object storage answers."
            self.emit_failure(tool_call_id, ErrorCode.STORAGE_UNAVAILABLE, detail, retryable=True, object_id=row.id)


def _partial_key(partial: PartialImage) -> str:
    return f"image.partial:{partial.tool_call_id}:{partial.index}"


def _created_key(tool_call_id: str) -> str:
    return f"attachment.created:{tool_call_id}"


def _log_other_type(image: GeneratedImage, decoded: Decoded, requested: Mapping[str, Any]) -> None:
    wanted = requested.get("output_format")
    mime_type = "image/svg+xml" if wanted == "svg" else f"image/{wanted}"
    if wanted and decoded.facts.mime_type != mime_type:
        found = {"requested": wanted, "received": decoded.facts.mime_type, "tool_call_id": image.tool_call_id}
        log.warning("image.other_type", extra=found)
