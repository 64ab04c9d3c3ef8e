"""Which streams of events are open, over all API processes: a row each, which its process tells of again and again."""

import asyncio
import logging
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, delete, func, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Database, uuid7
from app.identity.service import Actor
from app.inserts import insert_together
from app.limits import Permit
from app.runs.models import Run
from app.usage import counters
from app.usage.limits import Limit, Scope, judge

log = logging.getLogger(__name__)

TELL_SECONDS = 10.0
# What ends within this time is deleted together.
TOGETHER_SECONDS = 0.5
# Of a process that was killed.
LOST_AFTER = timedelta(minutes=1)


class Stream(Base):
    """One that was open at `seen_at`; it counts for a limit while that is recent and its run is open."""

    __tablename__ = "streams"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.id"], ondelete="CASCADE"),)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    seen_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


def new_stream(actor: Actor, run_id: UUID) -> Stream:
    return Stream(tenant_id=actor.tenant_id, run_id=run_id, id=uuid7(), user_id=actor.user_id)


async def admit_stream(session: AsyncSession, actor: Actor, run: Run) -> Stream:
    """One more of a run that exists. Raises LimitExceeded."""
    plan = await counters.read_plan(session, actor)
    if any(Limit.STREAMS_AT_ONCE.of(plan, scope) is not None for scope in Scope):
        standing = await counters.lock(session, plan, actor.tenant_id, actor.user_id)
        judge(standing.states, {Limit.STREAMS_AT_ONCE: 1}, standing.at)
    return await add_stream(session, actor, run)


async def add_stream(session: AsyncSession, actor: Actor, run: Run) -> Stream:
    """One more, whatever the limits are."""
    stream = new_stream(actor, run.id)
    await insert_together(session, stream)
    return stream


Key = tuple[UUID, UUID, UUID]


class OpenStreams:
    """Those of this process; their rows are told of every ten seconds, and deleted soon after they ended."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open: set[Key] = set()
        self._ended: set[Key] = set()
        self._any = asyncio.Event()
        self._some_ended = asyncio.Event()

    def hold(self, stream: Stream, permit: Permit) -> Permit:
        """The row lasts as long as the permit, which is returned."""
        key = (stream.tenant_id, stream.run_id, stream.id)
        self._open.add(key)
        self._any.set()
        permit.on_release = partial(self._end, key)
        return permit

    def _end(self, key: Key) -> None:
        self._open.discard(key)
        self._ended.add(key)
        self._some_ended.set()

    async def run(self) -> None:
        """Without streams it sleeps."""
        while True:
            await self._any.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_SECONDS):
                    await self._some_ended.wait()
                    await asyncio.sleep(TOGETHER_SECONDS)
            self._some_ended.clear()
            try:
                await self._tell()
            except Exception:
                log.warning("streams.not_told", exc_info=True)
            if not (self._open or self._ended):
                self._any.clear()

    async def _tell(self) -> None:
        ended, key = sorted(self._ended), tuple_(Stream.tenant_id, Stream.run_id, Stream.id)
        lost = select(Stream.id).where(Stream.seen_at < func.clock_timestamp() - LOST_AFTER)
        async with self._database.identity() as session:
            if self._open:
                told = update(Stream).where(key.in_(sorted(self._open)))
                await session.execute(told.values(seen_at=func.clock_timestamp()))
            if ended:
                await session.execute(delete(Stream).where(key.in_(ended)))
            await session.execute(delete(Stream).where(Stream.id.in_(lost.with_for_update(skip_locked=True))))
        self._ended.difference_update(ended)
