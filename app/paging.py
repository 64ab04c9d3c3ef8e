"""Cursor paging: `?limit&cursor` -> `{data, next_cursor}`, newest first, by UUIDv7 ids; conversations by activity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar, TypeVarTuple
from uuid import UUID

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import BindParameter, ColumnElement, Integer, Row, Select, Uuid, bindparam
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.compiled import CompiledStatement
from app.db import Base

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Page(BaseModel, Generic[T]):
    """For `class ConversationPage(Page[ConversationView])`; `next_cursor` is null on the last page."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    data: list[T]
    next_cursor: UUID | None = None


@dataclass(frozen=True)
class PageQuery:
    """`limit` rows after `cursor`, the `next_cursor` of the page before."""

    limit: int
    cursor: UUID | None


async def _page_query(limit: Annotated[int, Field(ge=1, le=100)] = 20, cursor: UUID | None = None) -> PageQuery:
    # A coroutine, because FastAPI would call a class in a thread.
    return PageQuery(limit, cursor)


Paging = Annotated[PageQuery, Depends(_page_query)]


class Pages(Generic[*Ts]):
    """A list whose pages are read by compiled statements; `shape` is that of `CompiledStatement`."""

    def __init__(
        self,
        statement: Select[*Ts],
        identifier: InstrumentedAttribute[UUID],
        *shape: type[Base] | None,
        oldest_first: bool = False,
    ) -> None:
        after = bindparam("cursor", type_=Uuid)
        ordered = _ordered(statement, identifier, oldest_first=oldest_first).limit(bindparam("limit", type_=Integer))
        self._first = CompiledStatement[*Ts](ordered, *shape)
        self._next = CompiledStatement[*Ts](ordered.where(_after(identifier, after, oldest_first=oldest_first)), *shape)

    async def fetch(
        self, session: AsyncSession, query: PageQuery, values: Mapping[str, Any]
    ) -> tuple[Sequence[Row[*Ts]], bool]:
        """The page's rows, each with all that the statement selects, and whether there are more."""
        statement = self._first if query.cursor is None else self._next
        given = {**values, "cursor": query.cursor, "limit": query.limit + 1}
        rows = (await statement.execute(session, given)).all()
        return rows[: query.limit], len(rows) > query.limit


async def fetch_page(
    session: AsyncSession,
    statement: Select[T],
    identifier: InstrumentedAttribute[UUID],
    query: PageQuery,
    *,
    oldest_first: bool = False,
) -> tuple[Sequence[T], UUID | None]:
    """The page's rows and the cursor of the next; UUIDv7 order is the order of creation."""
    if query.cursor is not None:
        statement = statement.where(_after(identifier, query.cursor, oldest_first=oldest_first))
    ordered = _ordered(statement, identifier, oldest_first=oldest_first).limit(query.limit + 1)
    rows = (await session.scalars(ordered)).all()
    return rows[: query.limit], getattr(rows[query.limit - 1], identifier.key) if len(rows) > query.limit else None


def _after(
    identifier: InstrumentedAttribute[UUID], cursor: UUID | BindParameter[Any], *, oldest_first: bool
) -> ColumnElement[bool]:
    return identifier > cursor if oldest_first else identifier < cursor


def _ordered(statement: Select[*Ts], identifier: InstrumentedAttribute[UUID], *, oldest_first: bool) -> Select[*Ts]:
    return statement.order_by(identifier.asc() if oldest_first else identifier.desc())
