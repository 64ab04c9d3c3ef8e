"""Which row each image of a run has, and the rows of new ones."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from uuid import UUID

from app.attachments.ingest import failed_attachment, new_attachment
from app.attachments.models import Attachment, AttachmentError, AttachmentKind
from app.images.inspect import Decoded
from app.images.options import OptionError
from app.inserts import with_defaults
from app.provider.observers import GeneratedImage
from app.runs.models import Run
from app.worker.image_options import ImageOptions


class ImageRows:
    """`ids` are by tool call; of two images under one tool call the first's.

    `prompt` and `parent_object_id` are what the request says: its text, and the image that an edit starts from.
    `promised` are the ids of rows without bytes, by tool call, in whose place images may still come.
    """

    def __init__(self, run: Run, options: ImageOptions) -> None:
        self.ids: dict[str, UUID] = {}
        self.promised: dict[str, UUID] = {}
        self.prompt = ""
        self.parent_object_id: UUID | None = None
        self._run = run
        self._options = options
        self._awaited: set[str] = set()
        self._none_awaited = asyncio.Event()
        self._none_awaited.set()

    def new(self, image: GeneratedImage, decoded: Decoded) -> Attachment:
        options = {**self._options(image.agent_key), **image.options}
        return new_attachment(
            decoded.facts,
            id=self.promised.get(image.tool_call_id),
            kind=AttachmentKind.GENERATED,
            agent_key=image.agent_key,
            size_bytes=len(decoded.data),
            sha256=decoded.sha256,
            tool_call_id=image.tool_call_id,
            revised_prompt=image.revised_prompt,
            **self._of_run(options),
        )

    def new_failed(self, object_id: UUID, tool_call_id: str | None, error: AttachmentError) -> Attachment:
        """For an image that is not there, with its columns' defaults."""
        agent_key = self._run.calling_agent or self._run.agent_key
        try:
            options = self._options(agent_key)
        except OptionError:  # the model was shut down meanwhile
            options = dict[str, Any]()
        row = failed_attachment(
            error,
            id=object_id,
            mime_type=mime_type_of(options.get("output_format", "png")),
            agent_key=agent_key,
            tool_call_id=tool_call_id,
            **self._of_run(options),
        )
        return with_defaults(row)

    def _of_run(self, options: dict[str, Any]) -> dict[str, Any]:
        run = self._run
        edited = run.options.edit is not None or options.get("action") == "edit"
        return {
            "tenant_id": run.tenant_id,
            "user_id": run.user_id,
            "conversation_id": run.conversation_id,
            "run_id": run.id,
            "message_id": run.output_message_id,
            "prompt": self.prompt,
            "options": options,
            "parent_object_id": self.parent_object_id if edited else None,
        }

    def expect(self, tool_call_id: str, storing: asyncio.Task[None]) -> asyncio.Task[None]:
        """A row, until `storing` ends, which is returned."""
        self._awaited.add(tool_call_id)
        self._none_awaited.clear()
        storing.add_done_callback(lambda _: self._expect_none(tool_call_id))
        return storing

    def add(self, tool_call_id: str, row: Attachment) -> Attachment:
        self.ids.setdefault(tool_call_id, row.id)
        self._expect_none(tool_call_id)
        return row

    def know(self, rows: Iterable[Attachment]) -> list[Attachment]:
        """Rows of earlier attempts among them, in the order of their creation; the same rows."""
        known = list(rows)
        for row in known:
            self.ids.setdefault(row.tool_call_id or "", row.id)
        return known

    def _expect_none(self, tool_call_id: str) -> None:
        self._awaited.discard(tool_call_id)
        if not self._awaited:
            self._none_awaited.set()

    async def wait(self, seconds: float) -> None:
        """Until no row is expected, but not for longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none_awaited.wait()


def mime_type_of(output_format: str) -> str:
    return "image/svg+xml" if output_format == "svg" else f"image/{output_format}"
