"""Several rows in one statement: a round trip for all of them, where the ORM's flush takes one for each table."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar, cast

from sqlalchemy import CTE, BindParameter, Insert, Table, bindparam, insert, literal, select
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncSession

from app.compiled import CompiledStatement
from app.db import Base

RowT = TypeVar("RowT", bound=Base)


async def insert_together(session: AsyncSession, *rows: Base) -> None:
    """Insert the rows, which stay outside the session; foreign keys among them hold at the statement's end."""
    given = [_complete(row) for row in rows]
    shape = tuple((type(row), tuple(values)) for row, values in zip(rows, given, strict=True))
    values = {f"{name}_{number}": value for number, row in enumerate(given) for name, value in row.items()}
    await _insert_together(shape).execute(session, values)


@cache
def _insert_together(shape: tuple[tuple[type[Base], tuple[str, ...]], ...]) -> CompiledStatement[()]:
    """Tables, and which of their columns."""
    *others, last = (_insert(kind, names, number) for number, (kind, names) in enumerate(shape))
    return CompiledStatement(last.add_cte(*(other.cte(f"row_{number}") for number, other in enumerate(others))))


def _insert(kind: type[Base], names: Sequence[str], number: int) -> Insert:
    columns = kind.__table__.columns
    # Not the class: for the ORM, values that are given as the statement is executed are rows to insert.
    return insert(cast(Table, kind.__table__)).values(
        {name: bindparam(f"{name}_{number}", type_=columns[name].type) for name in names}
    )


async def insert_once(session: AsyncSession, row: Base, *unique: str) -> bool:
    """Whether the row, which stays outside the session, was inserted: not where one has the same in these columns."""
    inserted = await _insert_once(type(row), names_of(row), unique).execute(session, values_of(row))
    return inserted.one_or_none() is not None


@cache
def _insert_once(kind: type[Base], names: tuple[str, ...], unique: tuple[str, ...]) -> CompiledStatement[int]:
    one = pg.insert(cast(Table, kind.__table__)).values(_parameters(kind, names))
    return CompiledStatement(one.on_conflict_do_nothing(index_elements=unique).returning(literal(1)))


def insert_where(kind: type[Base], names: Sequence[str], condition: CTE) -> pg.Insert:
    """An insert of `values_of` a row, to stand beside others in one statement; it happens where the CTE has a row."""
    values = _parameters(kind, names).values()
    return pg.insert(kind).from_select(list(names), select(*values).select_from(condition), False)


def _parameters(kind: type[Base], names: Sequence[str]) -> dict[str, BindParameter[Any]]:
    columns = kind.__table__.columns
    return {name: bindparam(f"{kind.__tablename__}_{name}", type_=columns[name].type) for name in names}


def values_of(row: Base) -> dict[str, Any]:
    """By the names that `insert_where` gives them."""
    return {f"{row.__tablename__}_{name}": value for name, value in _complete(row).items()}


def names_of(row: Base) -> tuple[str, ...]:
    """The columns that are inserted of it."""
    return tuple(_complete(row))


async def insert_many(session: AsyncSession, rows: Sequence[Base]) -> None:
    """Insert rows of one table, which stay outside the session, however many there are."""
    if rows:
        await session.execute(insert(type(rows[0])), [_complete(row) for row in rows])


def with_defaults(row: RowT) -> RowT:
    """The row with its columns' defaults, as an insert would fill them in."""
    _complete(row)
    return row


def _complete(row: Base) -> dict[str, Any]:
    """Its values by column, with the defaults, which SQLAlchemy does not fill into more than one insert a statement."""
    for column in type(row).__table__.columns:
        if column.name not in vars(row) and column.default is not None:
            default: Any = column.default
            setattr(row, column.name, default.arg(None) if default.is_callable else default.arg)
    return {column.name: vars(row)[column.name] for column in type(row).__table__.columns if column.name in vars(row)}
