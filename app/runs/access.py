"""Whether those who follow a run may still do so: who loses access is sent no more events after a few seconds.

A stream begins with one look at its reader's rights and may last for minutes. All streams that were opened with the
same credential for the same run share one later look.
"""

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from app.db import Database, enter_tenant
from app.errors import AppError
from app.event_log import EventLog
from app.identity import service as identity
from app.identity.permissions import Permission
from app.runs import service

log = logging.getLogger(__name__)

CHECK_SECONDS = 10.0


class Opened(NamedTuple):
    """What was opened, and with which credential."""

    credential: str
    tenant_id: UUID
    run_id: UUID


@dataclass
class _Streams:
    count: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)


class AccessWatch:
    """Looks every ten seconds whether the credentials of open streams still open them."""

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events
        self._open: dict[Opened, _Streams] = {}

    @contextmanager
    def over(self, credential: str, tenant_id: UUID, run_id: UUID) -> Generator[asyncio.Event]:
        """The event is set, and readers are woken, once access is lost."""
        opened = Opened(credential, tenant_id, run_id)
        streams = self._open.setdefault(opened, _Streams())
        streams.count += 1
        try:
            yield streams.lost
        finally:
            streams.count -= 1
            if not streams.count and self._open.get(opened) is streams:
                del self._open[opened]

    async def run(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            lost = [opened for opened in list(self._open) if not await self._is_allowed(opened)]
            for opened in lost:
                # Whoever gets access back begins anew.
                if streams := self._open.pop(opened, None):
                    streams.lost.set()
            if lost:
                self._events.wake_readers()

    async def _is_allowed(self, opened: Opened) -> bool:
        try:
            async with self._database.identity() as session:
                caller = await identity.identify(session, opened.credential)
                membership = caller.find_membership(opened.tenant_id)
                if membership is None:
                    return False
                actor = caller.actor(membership)
                actor.require(Permission.READ_CHAT)
                await enter_tenant(session, actor.tenant_id)
                await service.get(session, actor, opened.run_id)
        except AppError:
            return False
        except Exception:
            # As long as nobody can tell, the stream goes on.
            facts = {"tenant_id": str(opened.tenant_id), "run_id": str(opened.run_id)}
            log.warning("stream.access_unknown", extra=facts, exc_info=True)
        return True
