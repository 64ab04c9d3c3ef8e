"""Which row each image of a run has."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from uuid import UUID

from app.attachments.models import Attachment


class ImageRows:
    """`ids` are by tool call; of two images under one tool call the first's."""

    def __init__(self) -> None:
        self.ids: dict[str, UUID] = {}
        self._awaited: set[str] = set()
        self._none_awaited = asyncio.Event()
        self._none_awaited.set()

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
