"""Which streams of events are open, over all API processes: a row each, which its process tells of again and again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from sqlalchemy import (
    Delete,
    ForeignKeyConstraint,
    Uuid,
    bindparam,
    column,
    delete,
    func,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.compiled import CompiledStatement
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
TOGETHER_SECONDS = 0.05
# Of a process that was killed; it counts no more long before.
LOST_AFTER = timedelta(minutes=10)


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
    """One more of a run that exists, inserted. Raises LimitExceeded."""
    plan = await counters.read_plan(session, actor)
    if any(Limit.STREAMS_AT_ONCE.of(plan, scope) is not None for scope in Scope):
        standing = await counters.lock(session, plan, actor.tenant_id, actor.user_id)
        judge(standing.states, {Limit.STREAMS_AT_ONCE: 1}, standing.at)
    stream = new_stream(actor, run.id)
    await insert_together(session, stream)
    return stream


Key = tuple[UUID, UUID, UUID]
_KEY = tuple_(Stream.tenant_id, Stream.run_id, Stream.id)


def _delete_keys() -> Delete:
    names = [column(name, Uuid) for name in ("tenant_id", "run_id", "id")]
    lists = (bindparam(one.name, type_=ARRAY(Uuid)) for one in names)
    ended = func.unnest(*lists).table_valued(*names, name="ended").render_derived()
    return delete(Stream).where(tuple_(*ended.c) == _KEY)


_DELETE = CompiledStatement[()](_delete_keys())


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
        """Without streams it sleeps; in the end nothing of this process is left."""
        told = 0.0
        try:
            while True:
                await self._any.wait()
                await self._until_some_ended(told + TELL_SECONDS - time.monotonic())
                await self._logged(self._delete_ended)
                if time.monotonic() >= told + TELL_SECONDS:
                    told = time.monotonic()
                    await self._logged(self._tell)
                if not (self._open or self._ended):
                    self._any.clear()
        finally:
            self._ended |= self._open
            await self._logged(self._delete_ended)

    async def _until_some_ended(self, seconds: float) -> None:
        """But not for longer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._some_ended.wait()
                await asyncio.sleep(TOGETHER_SECONDS)

    async def _logged(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:
            log.warning("streams.not_told", exc_info=True)

    async def _delete_ended(self) -> None:
        self._some_ended.clear()
        ended = sorted(self._ended)
        if not ended:
            return
        async with self._database.identity() as session:
            tenants, runs, ids = zip(*ended, strict=True)
            await _DELETE.execute(session, {"tenant_id": tenants, "run_id": runs, "id": ids})
        self._ended.difference_update(ended)

    async def _tell(self) -> None:
        lost = Stream.seen_at < func.clock_timestamp() - LOST_AFTER
        # In one order, and past those that are just being deleted with their run.
        mine = select(Stream.id).where(_KEY.in_(sorted(self._open))).order_by(Stream.id)
        theirs = select(Stream.id).where(lost).order_by(Stream.id)
        async with self._database.identity() as session:
            told = update(Stream).where(Stream.id.in_(mine.with_for_update(skip_locked=True)))
            await session.execute(told.values(seen_at=func.clock_timestamp()))
            await session.execute(delete(Stream).where(Stream.id.in_(theirs.with_for_update(skip_locked=True))))
