"""The connections of an engine, to Postgres itself or by way of a pooler such as PgBouncer."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
from sqlalchemy import Dialect, event
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection
from sqlalchemy.util import await_only

from app import EaselError
from app.database_faults import database_fault, hide_value, reason_of
from app.errors import CONNECTION_FAULTS

# Together with the closing of a connection that hangs, less than the 10 seconds that a request may last.
CONNECT_SECONDS = 3
STATEMENT_SECONDS = 4
POOL_WAIT_SECONDS = 4.0
# A connection that was idle for longer may have been dropped on its way, by a firewall for example.
PING_AFTER_IDLE_SECONDS = 30.0
PING_SECONDS = 1.0
PREPARED_STATEMENTS = 100


class DatabaseUnreachable(EaselError):
    pass


def open_engine(url: str, *, pool_size: int, poolclass: type[Pool] | None = None) -> AsyncEngine:
    """`url` is any libpq form, which asyncpg reads itself: sockets by ?host=, sslmode, several hosts."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=poolclass,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=POOL_WAIT_SECONDS,
        # Parameters hold users' texts and hashes of secrets, which must not reach the log of an error.
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "do_connect", _Connector(url).prepare)
    event.listen(engine.sync_engine, "handle_error", _hide_value)
    _watch_idle_connections(engine)
    return engine


def _hide_value(context: ExceptionContext) -> None:
    original = context.original_exception
    hide_value(original.__cause__, original, context.sqlalchemy_exception)


async def is_pooled(connection: Any) -> bool:
    """Whether a pooler stands between: it gives its clients process ids of its own."""
    # One simple query without parameters: a pooler may send the parts of any other to different servers.
    statement = f"SELECT WHERE pg_backend_pid() = {connection.get_server_pid():d}"
    return await connection.execute(statement) != "SELECT 1"


@asynccontextmanager
async def connected(url: str, setting: str) -> AsyncGenerator[Any]:
    """One connection of asyncpg's own, for a command, to what `setting` names; its statements may take any time."""
    try:
        connection = await cast(Any, asyncpg).connect(url, timeout=CONNECT_SECONDS)
    except (*CONNECTION_FAULTS, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        fault = database_fault(error, setting, url)
        raise DatabaseUnreachable(fault or f"{setting} cannot be used: {reason_of(error)}.") from None
    try:
        yield connection
    finally:
        # Not a polite end: what is open is rolled back, and a lost connection is no error of its own.
        connection.terminate()


class _Connector:
    """Opens connections that keep prepared statements, unless a pooler may give each transaction another server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pooled = False

    def prepare(self, dialect: Dialect, record: ConnectionPoolEntry, arguments: list[Any], options: Any) -> None:
        """SQLAlchemy's hook before it connects; `options` are of this connection alone."""
        connection, kept = await_only(self._open())

        async def connect(*_: object) -> Any:
            return connection

        options.update(async_creator_fn=connect, prepared_statement_cache_size=kept)

    async def _open(self) -> tuple[Any, int]:
        """A connection, and how many prepared statements it keeps."""
        kept = 0 if self._pooled else PREPARED_STATEMENTS
        async with self._connecting(kept) as connection:
            # Asked of each connection: the address may lead to a pooler tomorrow.
            self._pooled = await is_pooled(connection)
            if not self._pooled or not kept:
                return connection, kept
        await connection.close()
        async with self._connecting(0) as connection:
            return connection, 0

    @asynccontextmanager
    async def _connecting(self, kept: int) -> AsyncGenerator[Any]:
        """Without kept statements asyncpg sends each one unnamed, and whole in one message."""
        connection = await cast(Any, asyncpg).connect(
            self._url, timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS, statement_cache_size=kept
        )
        try:
            yield connection
        except BaseException:
            connection.terminate()
            raise


def _watch_idle_connections(engine: AsyncEngine) -> None:
    """Replace a connection that is found closed, and ping one that was idle for long, before it is used.

    `pool_pre_ping` pings at each checkout: three round trips a transaction. Most lost connections need no ping, as
    asyncpg sees the server close them; only one that a network dropped silently does.
    """

    def check_in(connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    def check_out(connection: Any, record: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:
        idle_since = record.info.pop("idle_since", None)  # None for a new connection
        if idle_since is None:
            return
        lost = connection.driver_connection.is_closed()
        if not lost and time.monotonic() - idle_since > PING_AFTER_IDLE_SECONDS:
            lost = not connection.run_async(_answers)
        if lost:
            # Older connections are as likely lost: the pool replaces each before its next use.
            raise InvalidatePoolError

    event.listen(engine.sync_engine, "checkin", check_in)
    event.listen(engine.sync_engine, "checkout", check_out)


async def _answers(connection: Any) -> bool:
    try:
        await connection.execute("SELECT 1", timeout=PING_SECONDS)
    except (*CONNECTION_FAULTS, asyncpg.InterfaceError):
        return False
    return True
