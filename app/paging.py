"""Cursor paging: `?limit&cursor` -> `{data, next_cursor}`, newest first, by UUIDv7 ids; conversations by activity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar, TypeVarTuple
from uuid import UUID

from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row, Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

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


async def fetch_rows(
    session: AsyncSession,
    statement: Select[*Ts],
    identifier: InstrumentedAttribute[UUID],
    query: PageQuery,
    *,
    oldest_first: bool = False,
) -> tuple[Sequence[Row[*Ts]], bool]:
    """The page's rows, each with all that the statement selects, and whether there are more."""
    if query.cursor is not None:
        statement = statement.where(identifier > query.cursor if oldest_first else identifier < query.cursor)
    ordered = statement.order_by(identifier.asc() if oldest_first else identifier.desc())
    rows = (await session.execute(ordered.limit(query.limit + 1))).all()
    return rows[: query.limit], len(rows) > query.limit


async def fetch_page(
    session: AsyncSession,
    statement: Select[T],
    identifier: InstrumentedAttribute[UUID],
    query: PageQuery,
    *,
    oldest_first: bool = False,
) -> tuple[list[T], UUID | None]:
    """The page's rows and the cursor of the next; UUIDv7 order is the order of creation."""
    found, more = await fetch_rows(session, statement, identifier, query, oldest_first=oldest_first)
    rows = [row[0] for row in found]
    return rows, getattr(rows[-1], identifier.key) if more else None
