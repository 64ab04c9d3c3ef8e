"""Slots for images on their way into storage: a few for a worker, fewer for one run.

The bytes of an image that waits for a slot are in a file, so that a response with a thousand images occupies neither
memory nor the connections to the database.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from app.images.inspect import UnreadableImage, pool
from app.provider.image_bytes import ImageBytes, SpillFile
from app.storage.outage import Outage

log = logging.getLogger(__name__)

AT_ONCE = 4
# So that a run with a thousand images leaves a slot to others.
OF_ONE_RUN = 3


class Slots:
    """`AT_ONCE` slots of a worker; those who wait get them in the order in which they came."""

    def __init__(self, spill_file: SpillFile) -> None:
        self._spill_file = spill_file
        self._slots = asyncio.Semaphore(AT_ONCE)

    def of_run(self) -> "RunSlots":
        return RunSlots(self._spill_file, self._slots)


class RunSlots:
    """The slots as one run sees them: at most `OF_ONE_RUN` are its own, and no more of its images wait for one."""

    def __init__(self, spill_file: SpillFile, slots: asyncio.Semaphore) -> None:
        self._spill_file = spill_file
        self._slots = slots
        self._own = asyncio.Semaphore(OF_ONE_RUN)

    @asynccontextmanager
    async def admit(self, content: ImageBytes) -> AsyncGenerator[bytes]:
        """A slot, and the image's bytes, until the block ends; raises UnreadableImage where there are none."""
        loop = asyncio.get_running_loop()
        if self._own.locked() or self._slots.locked():
            try:
                await loop.run_in_executor(pool, content.spill, self._spill_file)
            except OSError as error:
                # Rather in memory than lost.
                log.warning("image.not_spilled", extra={"error": str(error)})
        async with self._own, self._slots:
            data = await loop.run_in_executor(pool, content.read) if content.is_spilled else content.data
            if data is None:
                raise UnreadableImage(
                    "The image has too many bytes." if content.size else "The image's base64 is invalid."
                )
            yield data


class ImageIntake:
    """Of one worker. Previews are apart: no image waits behind them, nor is spooled because one of them was slow."""

    def __init__(self, directory: Path) -> None:
        self._spill_file = SpillFile(directory)
        self.images = Slots(self._spill_file)
        self.previews = Slots(self._spill_file)
        self.image_outage = Outage()
        self.preview_outage = Outage()

    def close(self) -> None:
        self._spill_file.close()
