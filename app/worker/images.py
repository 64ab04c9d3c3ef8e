"""Takes a run's images from the provider into storage, each announced once it is there."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from app import traces
from app.attachments import variants
from app.attachments.ingest import insert_once, store_image
from app.attachments.models import Attachment, AttachmentError, AttachmentStatus
from app.error_codes import ErrorCode
from app.event_log import Record
from app.images.inspect import Decoded, UnreadableImage, examine
from app.images.reduce import fit
from app.provider.observers import GeneratedImage, PartialImage
from app.runs.models import Run
from app.worker.context import WorkerContext
from app.worker.event_writer import EventWriter
from app.worker.image_options import ImageOptions
from app.worker.image_reports import ImageReports
from app.worker.image_rows import ImageRows, mime_type_of
from app.worker.previews import RunPreviews

log = logging.getLogger(__name__)

# How long the next image may take after the text has ended. The store has its own, shorter limit: this one is for a
# database that restarts, and longer than a worker waits for that.
FINISH_SECONDS = 20.0
NOT_RECORDED = "The image could not be recorded; it follows if the provider has kept it."
# The option of an image that was written again smaller: how many bytes it had.
REDUCED_FROM = "reduced_from"


class RunImages:
    """Receives a run's images from the model (an ImageSink) and stores them without making the text wait."""

    def __init__(
        self,
        ctx: WorkerContext,
        run: Run,
        events: EventWriter,
        options: ImageOptions,
        written: Sequence[Record] = (),
    ) -> None:
        """`written` are the events of earlier attempts."""
        # The tool_call_ids whose bytes have arrived.
        self.received: set[str] = set()
        # Those of them that have an image without a row.
        self.unrecorded: set[str] = set()
        self.rows = ImageRows(run, options)
        self.reports = ImageReports(events, self.rows, written)
        self.previews = RunPreviews(ctx, run, events, options)
        self._ctx = ctx
        self._run = run
        self._events = events
        self._options = options
        self._images: list[asyncio.Task[None]] = []
        # The event keys of images that are stored, spooled or rejected by their size, or about to be.
        self._taken: set[str] = set()
        self._stored: set[str] = set()
        self._unreadable: dict[str, str] = {}
        self._slots = ctx.intake.images.of_run()

    def on_partial(self, partial: PartialImage) -> None:
        self.previews.on_partial(partial)

    def on_image(self, image: GeneratedImage) -> None:
        self.received.add(image.tool_call_id)
        self._images.append(self.rows.expect(image.tool_call_id, asyncio.create_task(self._store(image))))

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
                self.reports.failed(tool_call_id, ErrorCode.IMAGE_UNREADABLE, detail, retryable=False)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [*self._images, *self.previews.tasks]

    async def _store(self, image: GeneratedImage) -> None:
        tool_call_id, content = image.tool_call_id, image.content
        if content.data is None and content.size and not content.is_spilled:
            _log_too_large(self._run, tool_call_id, content.size)
            detail = self._too_large(content.size)
            self.reports.failed(tool_call_id, ErrorCode.IMAGE_TOO_LARGE, detail, retryable=False)
            return
        try:
            with traces.span("ingest image", {"easel.tool_call_id": tool_call_id, "easel.bytes": content.size}):
                async with self._slots.admit(content) as data:
                    key, row = await self._ingest_once(image, await examine(data))
        except UnreadableImage as error:
            log.warning("image.unreadable", extra={"tool_call_id": tool_call_id, "error": str(error)})
            # Reported at the end of the turn: the provider's last event may still bring the whole image.
            self._unreadable[tool_call_id] = str(error)
            return
        except asyncio.CancelledError:
            self.unrecorded.add(tool_call_id)
            raise
        except Exception:
            log.exception("image.ingest_failed", extra={"tool_call_id": tool_call_id})
            self.unrecorded.add(tool_call_id)
            self.reports.failed(tool_call_id, ErrorCode.INGEST_FAILED, NOT_RECORDED, retryable=True)
            return
        # Frees the bytes, which the wait for the previews must not keep.
        del image, content, data
        self._stored.add(tool_call_id)
        if row is None:
            return
        await self.previews.wait_for(tool_call_id)
        self.reports.row(key, row)
        if row.status == AttachmentStatus.STORED:
            await variants.request(self._ctx.broker, row.tenant_id, row.id)

    async def _ingest_once(self, image: GeneratedImage, decoded: Decoded) -> tuple[str, Attachment | None]:
        """The key of the image's event, and its row; None for a copy, also of what an earlier attempt announced.

        Two images may come under one tool call, so the bytes tell them apart.
        """
        key = f"attachment.created:{image.tool_call_id}:{decoded.sha256}"
        if key in self._taken or self._events.has(key):
            return key, None
        self._taken.add(key)
        try:
            return key, await self.ingest(image, decoded)
        except BaseException:
            self._taken.discard(key)
            raise

    async def ingest(self, image: GeneratedImage, decoded: Decoded) -> Attachment:
        """The image's row, as far as the image came; what is too large is written again smaller."""
        ctx, size = self._ctx, len(decoded.data)
        if size > ctx.settings.image_output_max_bytes:
            _log_too_large(self._run, image.tool_call_id, size)
        fitting = await fit(decoded, ctx.settings.image_output_max_bytes)
        _log_other_type(image, decoded, self._options(image.agent_key))
        row = self.rows.new(image, fitting or decoded)
        if fitting is None:
            row.status = AttachmentStatus.FAILED
            row.error = AttachmentError(code=ErrorCode.IMAGE_TOO_LARGE, detail=self._too_large(size))
        elif fitting is not decoded:
            row.options = {**row.options, REDUCED_FROM: size}
        # Of its promise only one image of a tool call can take the place.
        replaces_failed = self.rows.promised.pop(image.tool_call_id, None) is not None
        row = await insert_once(ctx.database, row, replaces_failed=replaces_failed)
        self.rows.add(image.tool_call_id, row)
        if fitting is None:
            return row
        return await store_image(ctx.database, ctx.store, ctx.spool, ctx.intake.image_outage, row, fitting.data)

    def _too_large(self, size_bytes: int) -> str:
        allowed = self._ctx.settings.image_output_max_mb
        return f"The image has {size_bytes / 1024**2:.1f} MB; IMAGE_OUTPUT_MAX_MB allows {allowed:g} MB."


def _log_too_large(run: Run, tool_call_id: str, size: int) -> None:
    facts = {"tenant_id": str(run.tenant_id), "run_id": str(run.id), "tool_call_id": tool_call_id}
    log.warning("image.too_large", extra={**facts, "size_bytes": size})


def _log_other_type(image: GeneratedImage, decoded: Decoded, requested: Mapping[str, Any]) -> None:
    wanted = requested.get("output_format")
    if wanted and decoded.facts.mime_type != mime_type_of(wanted):
        found = {"requested": wanted, "received": decoded.facts.mime_type, "tool_call_id": image.tool_call_id}
        log.warning("image.other_type", extra=found)
