"""Counts what goes to Postgres, at asyncpg's own protocol object: nothing that is sent passes by it."""

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import greenlet
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

# Work that runs beside turns, or after them.
BACKGROUND = (
    *("app.worker.housekeeping", "app.runs.streams"),
    *("app.attachments.variants", "app.attachments.variant_maker"),
)
ONE_TRIP_EACH = ("query", "prepare", "bind", "bind_execute", "bind_execute_many", "execute", "close_statement")


class Noting(Protocol):
    """Takes each call of asyncpg's protocol object, until it is `closed`: its SQL, and what else was given."""

    closed: bool

    def note(self, connection: int, name: str, sql: str, given: Sequence[Any]) -> None: ...


@dataclass
class RoundTrips:
    """The SQL of each round trip; preparing a statement is a trip of its own, made once a connection."""

    sent: list[str] = field(default_factory=list[str])
    closed: bool = False

    def note(self, connection: int, name: str, sql: str, given: Sequence[Any]) -> None:
        if not called_from(*BACKGROUND):
            self.sent.append(sql)

    @property
    def transactions(self) -> int:
        return sum(1 for sql in self.sent if sql.startswith("BEGIN"))

    @property
    def statements(self) -> list[str]:
        """Without what only begins, ends or limits a transaction."""
        aside = ("BEGIN", "COMMIT", "ROLLBACK", "SELECT set_config(")
        return [sql for sql in self.sent if not sql.startswith(aside)]


@contextmanager
def counting(engine: AsyncEngine) -> Generator[RoundTrips]:
    """Whatever the engine's connections are sent until the block ends; all of them must be idle as it begins."""
    trips = RoundTrips()
    with noting(engine, trips):
        yield trips


@contextmanager
def noting(engine: AsyncEngine, notes: Noting) -> Generator[None]:
    def check_out(connection: Any, *_: object) -> None:
        driver = connection.driver_connection
        if not isinstance(driver._protocol, _Protocol):
            driver._protocol = _Protocol(driver._protocol)
        driver._protocol.notes = notes

    # Before the engine's own listener, whose ping counts, too.
    event.listen(engine.sync_engine, "checkout", check_out, insert=True)
    try:
        yield
    finally:
        notes.closed = True
        event.remove(engine.sync_engine, "checkout", check_out)


class _Protocol:
    """asyncpg's protocol with a note of each call that waits for an answer of the server."""

    def __init__(self, protocol: Any) -> None:
        self.notes: Noting = RoundTrips(closed=True)
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        if name in ONE_TRIP_EACH and not self.notes.closed:
            return self._noted(name, self.notes)
        return getattr(self._protocol, name)

    def _noted(self, name: str, notes: Noting) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            # A simple query's text, a prepared statement, or a statement's name and text.
            given = [*args, *kwargs.values()]
            sql = given[1] if name == "prepare" else getattr(given[0], "query", given[0])
            notes.note(id(self), name, str(sql), given[1:])
            return getattr(self._protocol, name)(*args, **kwargs)

        return call


def called_from(*modules: str) -> bool:
    """Whether a function of one of the modules waits for what is executed now, also from outside a greenlet."""
    current = greenlet.getcurrent()
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__") in modules:
            return True
        frame = frame.f_back
        if frame is None and current.parent is not None:
            current = current.parent
            frame = current.gr_frame
    return False
