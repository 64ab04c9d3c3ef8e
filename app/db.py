"""Postgres: one engine, and transactions that have dropped to the rights of one of two roles."""

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, ParamSpec, TypeVar, cast
from uuid import UUID

from fastapi import Depends, Request
from pydantic import BaseModel
from sqlalchemy import Connection, DateTime, Dialect, MetaData, Text, TypeDecorator, event, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, SessionTransaction, mapped_column

from app.clock import SharedClock
from app.compiled import CONNECTION, CompiledStatement
from app.errors import is_connection_error
from app.measured_pool import MeasuredPool
from app.pool import open_engine

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

# How long a request waits for its callbacks after the commit; they continue behind it.
AFTER_COMMIT_SECONDS = 2.0
# How long a worker waits for a database that restarts.
UNAVAILABLE_SECONDS = 15.0
UNAVAILABLE_PAUSE_SECONDS = 0.2
APP_ROLE = "easel_app"
IDENTITY_ROLE = "easel_identity"
BACKUP_ROLE = "easel_backup"

# Local to the transaction. SET ROLE asks what the login may become, not what the role before it may.
SET_RIGHTS = text(
    "SELECT set_config('role', :role, true), set_config('app.tenant_id', :tenant, true), clock_timestamp() AS clock"
)
_SET_RIGHTS = CompiledStatement[str, str, datetime](SET_RIGHTS)

AfterCommit = Callable[[], Awaitable[object]]


class Base(DeclarativeBase):
    """Tables of every feature; foreign keys across features name tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: DateTime(timezone=True),
        str: Text,
        dict[str, Any]: JSONB,
    }


def uuid7() -> UUID:
    """A time-ordered id: milliseconds, their 4,096ths, 62 random bits (RFC 9562, sections 5.7 and 6.2, method 3).

    Ids that one process makes one after the other sort in that order, so a message sorts before its answer.
    """
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    value = milliseconds << 80 | 0x7 << 76 | (rest * 4096 // 1_000_000) << 64 | 0b10 << 62 | secrets.randbits(62)
    return UUID(int=value)


def now() -> datetime:
    return datetime.now(UTC)


class EnumText(TypeDecorator[StrEnum]):
    """A StrEnum in a text column: members in Python, their values in the database."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: StrEnum | str | None, dialect: Dialect) -> str | None:
        return None if value is None else self.kind(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.kind(value)


class ModelJson(TypeDecorator[BaseModel]):
    """A pydantic model in a jsonb column."""

    impl = JSONB
    cache_ok = True

    def __init__(self, model: type[BaseModel]) -> None:
        super().__init__(none_as_null=True)
        self.model = model

    def process_bind_param(self, value: BaseModel | None, dialect: Dialect) -> dict[str, Any] | None:
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: dict[str, Any] | None, dialect: Dialect) -> BaseModel | None:
        return None if value is None else self.model.model_validate(value)


class Identified:
    """`id` (UUIDv7) and `created_at`, for every table that has rows of its own."""

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    created_at: Mapped[datetime] = mapped_column(default=now)


class LimitedSession(Session):
    """A session whose every transaction first drops to the role, and tenant, in `session.info`."""


@event.listens_for(LimitedSession, "after_begin")
def _drop_rights(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if transaction.nested:
        return
    role = session.info["role"]
    tenant_id = session.info.get("tenant_id")
    if role == APP_ROLE and tenant_id is None:
        raise RuntimeError("A transaction as easel_app needs a tenant.")
    session.info["clock"].observe(_SET_RIGHTS.begin(connection, _rights(session)).one().clock)
    session.info[CONNECTION] = connection


@event.listens_for(LimitedSession, "after_transaction_end")
def _forget_connection(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(CONNECTION, None)


def _rights(session: Session | AsyncSession) -> dict[str, str]:
    return {"role": session.info["role"], "tenant": str(session.info.get("tenant_id") or "")}


async def enter_tenant(session: AsyncSession, tenant_id: UUID) -> None:
    """Continue identity's transaction as `easel_app` in this tenant; nothing in this session leads back."""
    # Rows that identity may see and the tenant may not must not be found in the session later.
    session.expunge_all()
    session.info.update(role=APP_ROLE, tenant_id=tenant_id)
    if session.in_transaction():
        await _SET_RIGHTS.execute(session, _rights(session))


def retry_while_unavailable(work: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """For a whole transaction of a worker that may run twice: retry while the database is unavailable, for a while."""

    @functools.wraps(work)
    async def repeat(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + UNAVAILABLE_SECONDS
        while True:
            try:
                return await work(*args, **kwargs)
            except Exception as error:
                if not is_connection_error(error) or time.monotonic() > deadline:
                    raise
                log.warning("database.unavailable", extra={"error": type(error).__name__})
            await asyncio.sleep(UNAVAILABLE_PAUSE_SECONDS)

    return repeat


class Database:
    """The engine, and its transactions: a tenant's and identity's; `probe` is one connection for checks."""

    def __init__(self, url: str, *, pool_size: int) -> None:
        self.engine = open_engine(url, pool_size=pool_size, poolclass=MeasuredPool)
        # For what must be told while all connections are in use.
        self.probe = open_engine(url, pool_size=1)
        self.clock = SharedClock()
        self._pending: set[asyncio.Task[None]] = set()
        self._sessions = async_sessionmaker(self.engine, sync_session_class=LimitedSession, expire_on_commit=False)

    def tenant(self, tenant_id: UUID) -> AbstractAsyncContextManager[AsyncSession]:
        """One transaction as `easel_app` that sees only this tenant's rows."""
        return self._transaction(APP_ROLE, tenant_id)

    def identity(self) -> AbstractAsyncContextManager[AsyncSession]:
        """One transaction as `easel_identity`, for what happens before a tenant is known."""
        return self._transaction(IDENTITY_ROLE, None)

    @asynccontextmanager
    async def _transaction(self, role: str, tenant_id: UUID | None) -> AsyncGenerator[AsyncSession]:
        info = {"role": role, "tenant_id": tenant_id, "clock": self.clock}
        session = self._sessions(info=info)
        try:
            yield session
            await session.commit()
        except BaseException:
            async with session:
                raise
        # Its connection went back with the commit: what is left takes no task of its own.
        session.sync_session.close()
        if callbacks := cast(list[AfterCommit], session.info.pop("after_commit", [])):
            await self._run_callbacks(callbacks)

    async def _run_callbacks(self, callbacks: Sequence[AfterCommit]) -> None:
        task = asyncio.create_task(_call_each(callbacks))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        await asyncio.wait({task}, timeout=AFTER_COMMIT_SECONDS)

    async def close(self) -> None:
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        await self.engine.dispose()
        await self.probe.dispose()


def after_commit(session: AsyncSession, callback: AfterCommit) -> None:
    """Call it once the transaction is committed; its failure is logged, and the sweep repeats what matters."""
    session.info.setdefault("after_commit", []).append(callback)


async def _call_each(callbacks: Sequence[AfterCommit]) -> None:
    for callback in callbacks:
        try:
            await callback()
        except Exception:
            log.exception("after_commit.failed")


def from_state(name: str) -> Any:
    """For `Annotated[Broker, from_state("broker")]`: one of what the process holds open."""

    async def read(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(read, scope="function")


CurrentDatabase = Annotated[Database, from_state("database")]


async def open_identity_session(database: CurrentDatabase) -> AsyncIterator[AsyncSession]:
    async with database.identity() as session:
        yield session


IdentitySession = Annotated[AsyncSession, Depends(open_identity_session, scope="function")]
