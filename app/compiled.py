"""Statements that are compiled once, and executed by asyncpg itself on the connection of a session's transaction."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVarTuple, cast

import asyncpg
from sqlalchemy import ARRAY, Connection, Dialect, TextClause, UpdateBase
from sqlalchemy.engine import IteratorResult, Result
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, class_mapper
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.selectable import TypedReturnsRows
from sqlalchemy.types import TypeEngine

from app.database_faults import hide_value

Ts = TypeVarTuple("Ts")

CONNECTION = "connection"
"""In a session's `info`: that of the transaction which has begun."""

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError)


class CompiledStatement(Generic[*Ts]):
    """SQLAlchemy composes, compiles and types `statement`; only the values of its parameters differ.

    `shape` says of what a row consists where it is not of columns alone: a mapped class stands for all of its columns,
    None for one column. The objects that are made of them belong to no session, and what a class loads later is None in
    them. A parameter that has a value keeps it.
    """

    def __init__(self, statement: "TypedReturnsRows[*Ts] | TextClause | UpdateBase", *shape: type[Any] | None) -> None:
        self._statement = statement
        self._shape = shape
        self._prepared: _Prepared | None = None

    async def execute(self, session: AsyncSession, values: Mapping[str, Any]) -> Result[*Ts]:
        connection = await _connection_of(session)
        prepared = self._prepared_for(connection)
        driver = cast(Any, connection.connection.driver_connection)
        try:
            records = await driver.fetch(prepared.sql, *prepared.arguments(values))
        except BaseException as error:
            is_lost = _is_lost(connection)
            if is_lost or _is_broken_off(error):
                # In a greenlet, where SQLAlchemy waits until the server has stopped the statement.
                await session.run_sync(_give_up, error)
            if fault := _fault(connection, prepared.sql, error, is_lost=is_lost):
                raise fault from error
            raise
        return cast(Result[*Ts], prepared.result(records))

    def begin(self, connection: Connection, values: Mapping[str, Any]) -> Result[*Ts]:
        """The same as the first statement of a transaction, which its cursor begins, in a greenlet of SQLAlchemy's."""
        prepared = self._prepared_for(connection)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(prepared.sql, prepared.arguments(values))
            records = cursor.fetchall()
        except BaseException as error:
            is_lost = _is_lost(connection)
            if is_lost or _is_broken_off(error):
                connection.invalidate(error)
            if fault := _fault(connection, prepared.sql, error, is_lost=is_lost):
                raise fault from error
            raise
        finally:
            cursor.close()
        return cast(Result[*Ts], prepared.result(records))

    def _prepared_for(self, connection: Connection) -> "_Prepared":
        if self._prepared is None:
            self._prepared = _prepare(self._statement, self._shape, connection.dialect)
        return self._prepared


async def _connection_of(session: AsyncSession) -> Connection:
    if session.new or session.dirty or session.deleted:
        await session.flush()
    # A savepoint begins with the session's first statement in it; and a transaction that failed is not to go on.
    if CONNECTION not in session.info or session.in_nested_transaction() or not session.is_active:
        await session.run_sync(Session.connection)
    return cast(Connection, session.info[CONNECTION])


def _is_lost(connection: Connection) -> bool:
    return bool(cast(Any, connection.connection.driver_connection).is_closed())


def _is_broken_off(error: BaseException) -> bool:
    """Whether it is unknown what the connection does now."""
    return not isinstance(error, Exception)


def _give_up(session: Session, error: BaseException) -> None:
    cast(Connection, session.info[CONNECTION]).invalidate(error)


def _fault(connection: Connection, sql: str, error: BaseException, *, is_lost: bool) -> BaseException | None:
    """What SQLAlchemy raises in its place, if it does."""
    errors = connection.dialect.loaded_dbapi
    hide_value(error)
    if isinstance(error, DRIVER_ERRORS):
        kind = errors.IntegrityError if isinstance(error, asyncpg.IntegrityConstraintViolationError) else errors.Error
        original = kind(error.args[0] if error.args else "", error)
        original.__cause__ = error
    elif isinstance(error, errors.Error):
        original = error
    else:
        return None
    # Parameters hold users' texts and hashes of secrets, which must not reach the log.
    hidden: Any = {"hide_parameters": True, "connection_invalidated": is_lost, "dialect": connection.dialect}
    return cast(BaseException, DBAPIError.instance(sql, None, original, errors.Error, **hidden))


Process = Callable[[Any], Any]


@dataclass(frozen=True)
class _Prepared:
    """`binds` are the SQL's parameters in their order: a name, or a constant as it is sent; and how a value is written.

    `reads` are the columns whose values are not what asyncpg makes of them. `parts` are those of a row that has
    entities: these, and the places of the other columns. `keys` are those that the server names where it is None.
    """

    sql: str
    binds: tuple[tuple[str | None, Any, Process | None], ...]
    reads: tuple[tuple[int, Process], ...]
    parts: tuple["_Entity | int", ...]
    keys: SimpleResultMetaData | None

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = []
        for name, constant, process in self.binds:
            if name is None:
                found.append(constant)
            else:
                found.append(values[name] if process is None else process(values[name]))
        return found

    def result(self, records: Sequence[Any]) -> Result[*tuple[Any, ...]]:
        keys = self.keys or SimpleResultMetaData(list(records[0].keys()) if records else ())
        return IteratorResult(keys, iter([self._row(record) for record in records]))

    def _row(self, record: Sequence[Any]) -> Sequence[Any]:
        row = list(record)
        for at, read in self.reads:
            row[at] = read(row[at])
        return [row[part] if isinstance(part, int) else part.of(row) for part in self.parts] if self.parts else row


@dataclass(frozen=True)
class _Entity:
    new: Callable[[], Any]
    names: tuple[str, ...]
    begin: int
    key: int

    def of(self, row: Sequence[Any]) -> Any:
        """None where an outer join found nothing."""
        if row[self.key] is None:
            return None
        made = self.new()
        values = row[self.begin : self.begin + len(self.names)]
        cast(dict[str, Any], vars(made)).update(zip(self.names, values, strict=True))
        return made


def _prepare(statement: Any, shape: Sequence[type[Any] | None], dialect: Dialect) -> _Prepared:
    compiled = cast(SQLCompiler, statement.compile(dialect=dialect))
    if compiled.insert_prefetch or compiled.update_prefetch:
        raise ValueError(f"A column's default would be left out: {compiled}")
    if isinstance(statement, TextClause):
        return _Prepared(*_binds(compiled, dialect), (), (), None)
    columns, parts = _shaped(list(statement.exported_columns), shape)
    reads = ((at, _read(_impl(column.type, dialect), dialect)) for at, column in enumerate(columns))
    sql, binds = _binds(compiled, dialect)
    names = [one.__name__ if one else None for one in shape] or [column.key for column in columns]
    keys = SimpleResultMetaData([name or f"column_{at}" for at, name in enumerate(names)])
    return _Prepared(sql, binds, tuple((at, read) for at, read in reads if read), parts, keys)


def _shaped(
    columns: Sequence[Any], shape: Sequence[type[Any] | None]
) -> tuple[Sequence[Any], tuple["_Entity | int", ...]]:
    """The columns without those that an entity loads later, if ever, and the parts of a row of them."""
    if not shape:
        return columns, ()
    left, kept, parts = deque(columns), list[Any](), list[_Entity | int]()
    for kind in shape:
        if kind is None:
            parts.append(len(kept))
            kept.append(left.popleft())
            continue
        mapper = class_mapper(kind)
        given = [left.popleft() for _ in mapper.column_attrs if left]
        if [column.key for column in given] != [one.key for one in mapper.column_attrs]:
            raise ValueError(f"Not the columns of {kind.__name__}: {[column.key for column in given]}.")
        attributes = zip(mapper.column_attrs, given, strict=True)
        loaded = [(one.key, column) for one, column in attributes if not one.deferred]
        names = tuple(name for name, _ in loaded)
        key = names.index(mapper.get_property_by_column(mapper.primary_key[-1]).key)
        parts.append(_Entity(mapper.class_manager.new_instance, names, len(kept), len(kept) + key))
        kept += [column for _, column in loaded]
    if left:
        raise ValueError(f"More columns than the shape has: {[column.key for column in left]}.")
    return kept, tuple(parts)


def _binds(compiled: SQLCompiler, dialect: Dialect) -> tuple[str, tuple[tuple[str | None, Any, Process | None], ...]]:
    required = {name for name, bind in compiled.binds.items() if bind.required}
    # An IN of constants becomes as many parameters.
    expanded = compiled.construct_expanded_state(dict.fromkeys(required))
    found: list[tuple[str | None, Any, Process | None]] = []
    for name in expanded.positiontup or ():
        bind = compiled.binds.get(name)
        process = expanded.processors.get(name) if bind is None else _impl(bind.type, dialect).bind_processor(dialect)
        constant = None if name in required else expanded.parameters[name]
        if process is not None and name not in required:
            constant = process(constant)
        found.append((name if name in required else None, constant, process))
    return expanded.statement, tuple(found)


def _impl(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    return kind.dialect_impl(dialect)


def _read(kind: TypeEngine[Any], dialect: Dialect) -> Process | None:
    # SQLAlchemy copies each list, whatever is in it.
    if isinstance(kind, ARRAY) and _read(_impl(cast(Any, kind).item_type, dialect), dialect) is None:
        return None
    return cast(Process | None, kind.result_processor(dialect, None))
