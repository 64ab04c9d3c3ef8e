"""Sums over the ledger, a row for each combination of what they are grouped by."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import date
from hashlib import sha256
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import Field, TypeAdapter
from sqlalchemy import ColumnElement, Date, Label, Row, Select, cast, distinct, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.bodies import storable
from app.errors import Invalid
from app.usage.kinds import Basis, Kind
from app.usage.models import UsageEntry
from app.usage.money import to_usd
from app.usage.schemas import UsageGroup, UsagePage, UsageSum
from app.usage.service import Selection

Group = Literal["day", "agent", "user", "model"]
GROUPS: tuple[Group, ...] = get_args(Group)
_KEYS: dict[Group, Label[Any]] = {
    "day": cast(func.timezone("UTC", UsageEntry.created_at), Date).label("day"),
    "agent": UsageEntry.agent_key.label("agent_key"),
    "user": UsageEntry.user_id.label("user_id"),
    "model": UsageEntry.model.label("model"),
}
# Raise ValueError for what cannot be a value of the column.
_READ: dict[Group, Callable[[str], Any]] = {
    "day": date.fromisoformat,
    "agent": storable,
    "user": UUID,
    "model": storable,
}
_CURSOR = TypeAdapter(Annotated[list[str], Field(min_length=1)])


def parse_groups(given: str) -> list[Group]:
    """From a list with commas between; raises Invalid."""
    wanted = [name.strip() for name in given.split(",")]
    if set(wanted) <= set(GROUPS) and len(set(wanted)) == len(wanted):
        return [group for group in GROUPS if group in wanted]
    allowed = f"some of {', '.join(GROUPS)}, each once, with commas between"
    raise Invalid(
        f"group_by: {allowed}.", errors=[{"field": "group_by", "message": allowed, "given": repr(given)[:100]}]
    )


async def page(
    session: AsyncSession,
    tenant_id: UUID,
    selection: Selection,
    groups: Sequence[Group],
    limit: int,
    cursor: str | None,
) -> UsagePage:
    """In the order of the groups. Raises Invalid for a cursor of another question."""
    keys = [_KEYS[group] for group in groups]
    seal = _seal(tenant_id, selection, groups)
    statement = _sums(selection, keys)
    if cursor is not None:
        statement = statement.where(tuple_(*(key.element for key in keys)) > _after(keys, _open(cursor, seal, groups)))
    rows = (await session.execute(statement.limit(limit + 1))).all()
    shown = rows[:limit]
    return UsagePage(
        data=[UsageGroup(**_sum(row), **{key.name: getattr(row, key.name) for key in keys}) for row in shown],
        total=await whole(session, selection),
        next_cursor=_close([getattr(shown[-1], key.name) for key in keys], seal) if len(rows) > limit else None,
    )


async def whole(session: AsyncSession, selection: Selection) -> UsageSum:
    """Of all that is selected."""
    return UsageSum(**_sum((await session.execute(_sums(selection, []))).one()))


def _sums(selection: Selection, keys: Sequence[Label[Any]]) -> Select[Any]:
    """One pass: quantities and sums of money, a column for each kind."""
    cost, is_priced = func.sum(UsageEntry.cost_nano), UsageEntry.cost_nano.is_not(None)
    drawn = (UsageEntry.kind == Kind.IMAGE_OUTPUT) & UsageEntry.tool_call_id.is_not(None)
    quantities = [
        func.coalesce(func.sum(UsageEntry.quantity).filter(UsageEntry.kind == kind), 0).label(kind.value)
        for kind in Kind
    ]
    return (
        select(
            *keys,
            func.count(distinct(UsageEntry.run_id)).label("runs"),
            func.count().filter(drawn).label("images"),
            func.coalesce(cost, 0).label("cost"),
            func.coalesce(cost.filter(UsageEntry.basis == Basis.ESTIMATED), 0).label("estimated"),
            func.count().filter(~is_priced).label("unpriced"),
            *quantities,
        )
        .where(selection.condition)
        .group_by(*(key.element for key in keys))
        .order_by(*(key.element for key in keys))
    )


def _sum(row: Row[Any]) -> dict[str, Any]:
    counts = {kind: int(getattr(row, kind.value)) for kind in Kind}
    return {
        "runs": row.runs,
        "images": row.images,
        "quantities": {kind: count for kind, count in counts.items() if count},
        "cost_usd": to_usd(int(row.cost)),
        "estimated_usd": to_usd(int(row.estimated)),
        "unpriced": row.unpriced,
    }


def _seal(tenant_id: UUID, selection: Selection, groups: Sequence[Group]) -> str:
    """Of the question that a cursor belongs to."""
    return sha256(f"{tenant_id} {selection} {groups}".encode()).hexdigest()[:16]


def _close(values: Sequence[object], seal: str) -> str:
    return urlsafe_b64encode(json.dumps([seal, *map(str, values)]).encode()).decode()


def _open(cursor: str, seal: str, groups: Sequence[Group]) -> list[Any]:
    try:
        found = _CURSOR.validate_json(urlsafe_b64decode(cursor.encode()))
        values = [_READ[group](value) for group, value in zip(groups, found[1:], strict=True)]
    except ValueError:
        found, values = [""], []
    if found[0] != seal:
        allowed = "the `next_cursor` of the page before, with the same question"
        raise Invalid(f"cursor: {allowed}.", errors=[{"field": "cursor", "message": allowed, "given": cursor[:100]}])
    return values


def _after(keys: Sequence[Label[Any]], values: Sequence[Any]) -> ColumnElement[Any]:
    return tuple_(*(literal(value, key.type) for key, value in zip(keys, values, strict=True)))
