"""Shows a run's partial images: small objects that expire."""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

from app.db import now
from app.images.inspect import UnreadableImage, facts_of
from app.provider.observers import PartialImage
from app.runs.events import ImagePartial
from app.runs.models import Run
from app.storage import keys
from app.storage.store import StorageError
from app.worker.context import WorkerContext
from app.worker.event_writer import EventWriter
from app.worker.image_options import ImageOptions

log = logging.getLogger(__name__)

PREVIEW_SECONDS = 2.0
DROP = "drop_previews"


async def drop_later(ctx: WorkerContext, run: Run) -> None:
    """Schedule the end of the run's previews, for when its stream has expired."""
    later = now() + timedelta(seconds=ctx.settings.stream_ttl_seconds)
    await ctx.broker.enqueue(DROP, str(run.tenant_id), str(run.id), key=f"previews:{run.id}", when=later)


class RunPreviews:
    """Stores a run's partial images and announces them, those of one tool call in their order."""

    def __init__(self, ctx: WorkerContext, run: Run, events: EventWriter, options: ImageOptions) -> None:
        self._ctx = ctx
        self._run = run
        self._events = events
        self._options = options
        self._by_call: dict[str, list[asyncio.Task[None]]] = {}
        self._following: list[asyncio.Task[None]] = []
        self._slots = ctx.intake.previews.of_run()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [*self._following, *(task for tasks in self._by_call.values() for task in tasks)]

    def on_partial(self, partial: PartialImage) -> None:
        if self._events.has(_key(partial)):
            return
        tasks = self._by_call.setdefault(partial.tool_call_id, [])
        tasks.append(asyncio.create_task(self._show(partial, before=tasks[-1] if tasks else None)))

    async def wait_for(self, tool_call_id: str) -> None:
        """Until those of the tool call are announced, but not for long."""
        if tasks := self._by_call.get(tool_call_id):
            await asyncio.wait(tasks, timeout=PREVIEW_SECONDS)

    def then(self, tool_call_id: str, tell: Callable[[], None]) -> None:
        """Call it once those of the tool call are announced, or soon."""
        self._following.append(asyncio.create_task(self._tell(tool_call_id, tell)))

    async def _tell(self, tool_call_id: str, tell: Callable[[], None]) -> None:
        await self.wait_for(tool_call_id)
        tell()

    async def _show(self, partial: PartialImage, *, before: asyncio.Task[None] | None) -> None:
        """If a preview cannot be stored, the reader only misses it."""
        run = self._run
        try:
            async with self._slots.admit(partial.content) as data:
                facts = await facts_of(data)
                key = keys.preview_key(run.tenant_id, run.id, partial.tool_call_id, partial.index, facts.extension)
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
            of=max(self._options(partial.agent_key).get("partial_images", 0), partial.index + 1),
            url=key,
            mime_type=facts.mime_type,
            width=facts.width,
            height=facts.height,
        )
        self._events.emit(event, _key(partial))


def _key(partial: PartialImage) -> str:
    return f"image.partial:{partial.tool_call_id}:{partial.index}"
