"""Which entries of the ledger a caller reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import now
from app.errors import Invalid
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.paging import PageQuery
from app.usage.models import UsageEntry

MOST_DAYS = 366


@dataclass(frozen=True)
class Period:
    """Whole days in UTC, from `start` up to `end`, which is not a part of it."""

    start: datetime
    end: datetime

    @classmethod
    def of(cls, first: date | None, after: date | None) -> "Period":
        """The present month where neither is given, to the month's end where `after` is not. Raises Invalid."""
        start = first or now().date().replace(day=1)
        end = after or (start.replace(day=1) + timedelta(days=32)).replace(day=1)
        if not timedelta(0) < end - start <= timedelta(days=MOST_DAYS):
            allowed = f"a day after `from` ({start}), {MOST_DAYS} days later at most"
            raise Invalid(f"to: {allowed}.", errors=[{"field": "to", "message": allowed, "given": str(end)}])
        return cls(_midnight(start), _midnight(end))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


@dataclass(frozen=True)
class Selection:
    """Entries of one tenant, which row security names; None means all of them."""

    period: Period | None
    user_id: UUID | None = None
    agent_key: str | None = None
    run_id: UUID | None = None

    @property
    def condition(self) -> ColumnElement[bool]:
        wanted = {
            UsageEntry.user_id: self.user_id,
            UsageEntry.agent_key: self.agent_key,
            UsageEntry.run_id: self.run_id,
        }
        found = [column == value for column, value in wanted.items() if value is not None]
        if self.period is not None:
            found += [UsageEntry.created_at >= self.period.start, UsageEntry.created_at < self.period.end]
        return and_(*found)


def readable_by(actor: Actor, user_id: UUID | None) -> UUID | None:
    """Whose entries the actor reads: their own, or those that an admin asks for. Raises Forbidden."""
    if user_id not in (None, actor.user_id):
        actor.require(Permission.READ_TENANT_USAGE)
    if actor.role.covers(Permission.READ_TENANT_USAGE.role):
        return user_id
    return actor.user_id


async def entries(
    session: AsyncSession, selection: Selection, query: PageQuery
) -> tuple[Sequence[UsageEntry], UUID | None]:
    """A page of them, oldest first, and the cursor of the next. Raises Invalid for a cursor that is no entry."""
    statement = select(UsageEntry).where(selection.condition)
    if query.cursor is not None:
        last = await session.get(UsageEntry, query.cursor)
        if last is None:
            allowed = "the `next_cursor` of the page before"
            given = str(query.cursor)
            raise Invalid(f"cursor: {allowed}.", errors=[{"field": "cursor", "message": allowed, "given": given}])
        statement = statement.where(tuple_(UsageEntry.created_at, UsageEntry.id) > tuple_(last.created_at, last.id))
    ordered = statement.order_by(UsageEntry.created_at, UsageEntry.id)
    rows = (await session.scalars(ordered.limit(query.limit + 1))).all()
    shown = rows[: query.limit]
    return shown, shown[-1].id if len(rows) > query.limit else None
