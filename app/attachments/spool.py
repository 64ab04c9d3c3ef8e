"""Images that wait on this machine's disk until the store accepts them; files 0600, limited in total size."""

import asyncio
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from app import metrics

log = logging.getLogger(__name__)

MAX_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Waiting:
    tenant_id: UUID
    object_id: UUID
    path: Path


class Spool:
    """One file for each waiting image: `{tenant_id}_{object_id}` under `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def keep(self, tenant_id: UUID, object_id: UUID, data: bytes) -> None:
        try:
            await asyncio.to_thread(self._write, f"{tenant_id}_{object_id}", data)
        except OSError as error:
            metrics.SPOOL_FAILURES.inc()
            log.error("image.spool_failed", extra={"object_id": str(object_id), "error": str(error)})

    def _write(self, name: str, data: bytes) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        used = sum(_size(waiting.path) for waiting in self.waiting())
        if used + len(data) > MAX_BYTES:
            raise OSError(f"the spool is full: {used} bytes wait for the store")
        temporary = self._directory / f".{name}"
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                os.fsync(file.fileno())
        except OSError:
            # On a full disk a half-written image would occupy the space of others.
            temporary.unlink(missing_ok=True)
            raise
        temporary.rename(self._directory / name)

    def waiting(self) -> Iterator[Waiting]:
        """What waits, oldest object first."""
        paths = sorted(self._directory.iterdir()) if self._directory.is_dir() else []
        for path in paths:
            if not path.name.startswith("."):
                tenant_id, _, object_id = path.name.partition("_")
                yield Waiting(UUID(tenant_id), UUID(object_id), path)

    async def usage(self) -> tuple[int, int]:
        """How many files wait, and their bytes."""
        sizes = await asyncio.to_thread(lambda: [_size(waiting.path) for waiting in self.waiting()])
        return len(sizes), sum(sizes)

    async def read(self, waiting: Waiting) -> bytes:
        return await asyncio.to_thread(waiting.path.read_bytes)

    async def drop(self, waiting: Waiting) -> None:
        await asyncio.to_thread(waiting.path.unlink, missing_ok=True)


def _size(path: Path) -> int:
    """In bytes; nothing once the repair has stored what it held."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
