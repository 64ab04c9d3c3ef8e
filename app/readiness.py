"""Whether this process can serve requests. `/readyz` is asked often, and by anyone: the answer is kept for a moment.

The database and the broker decide it. Storage is looked at and reported, and decides nothing: it is the same for every
process, and while it is away texts, reads and sign-ins work, and images wait in the spool (docs/decisions/0043).
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Literal

from app.broker import Broker
from app.db import Database
from app.error_codes import ErrorCode
from app.errors import Unavailable
from app.rights import rights_faults
from app.schema import is_current, schema_state
from app.storage.store import StorageError, Store

# A flood of probes costs one look in this time, and one connection while it lasts.
FRESH_SECONDS = 1.0
STORAGE_FRESH_SECONDS = 5.0
STORAGE_SECONDS = 1.0
"""A store that takes longer to answer counts as away."""

StorageState = Literal["ok", "failing"]
BEHIND = "The database's schema is behind: run `just migrate`."


@dataclass
class _Look:
    task: "asyncio.Task[None]"
    began: float


class Readiness:
    """What requests need of the parts that one process holds open."""

    def __init__(self, database: Database, broker: Broker, store: Store) -> None:
        self._database = database
        self._broker = broker
        self._store = store
        self._look: _Look | None = None
        self._store_look: _Look | None = None
        self._storage: StorageState = "ok"

    async def check(self) -> StorageState:
        """How the storage is. Raises Unavailable, or what database and broker raise, where no request can be served."""
        self._look = _renewed(self._look, FRESH_SECONDS, self._check)
        await asyncio.shield(self._look.task)
        self._store_look = _renewed(self._store_look, STORAGE_FRESH_SECONDS, self._check_storage)
        left = self._store_look.began + STORAGE_SECONDS - time.monotonic()
        await asyncio.wait({self._store_look.task}, timeout=max(left, 0))
        return self._storage if self._store_look.task.done() else "failing"

    async def _check(self) -> None:
        current, head = await schema_state(self._database)
        if current != head and not await is_current(self._database):
            raise Unavailable(BEHIND, code=ErrorCode.SCHEMA_BEHIND)
        async with self._database.probe.connect() as connection:
            if faults := await rights_faults(connection, at_head=current == head):
                raise Unavailable(" ".join(faults))
        await self._broker.ping()

    async def _check_storage(self) -> None:
        try:
            await self._store.prepare(create_bucket=False)
        except StorageError:
            self._storage = "failing"
        else:
            self._storage = "ok"


def _renewed(look: _Look | None, seconds: float, check: Callable[[], Coroutine[None, None, None]]) -> _Look:
    """The last look while it goes on or is fresh, else a new one."""
    if look is not None and (not look.task.done() or time.monotonic() < look.began + seconds):
        return look
    task = asyncio.create_task(check())
    task.add_done_callback(_retrieve)
    return _Look(task, time.monotonic())


def _retrieve(task: "asyncio.Task[None]") -> None:
    """Everybody who asked may have left; then asyncio would report that nobody read the error."""
    if not task.cancelled():
        task.exception()
