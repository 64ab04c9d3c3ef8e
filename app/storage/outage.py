"""A store that hangs is not asked again at once."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.storage.store import StorageError, StorageUnavailable

# After a failure that took this long, the images behind are spooled at once for a while: otherwise the last of many
# would wait for the store as often as there are images before it.
SLOW_SECONDS = 1.0
OUTAGE_SECONDS = 5.0


class Outage:
    """Whether the store has hung a moment ago."""

    def __init__(self) -> None:
        self._until = 0.0

    @asynccontextmanager
    async def watching(self, seconds: float) -> AsyncGenerator[None]:
        """Around a put, which may take this long; raises StorageUnavailable at once during an outage."""
        began = time.monotonic()
        if began < self._until:
            raise StorageUnavailable("The store did not answer a moment ago.")
        try:
            async with asyncio.timeout(seconds):
                yield
        except (StorageError, TimeoutError):
            if time.monotonic() - began > SLOW_SECONDS:
                self._until = time.monotonic() + OUTAGE_SECONDS
            raise
