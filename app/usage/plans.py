"""What the operator does with plans, and what an unknown one is called."""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from app import EaselError
from app.db import Database
from app.settings import SettingsError
from app.usage.limits import LIMITS, Limit, column_of, key_of
from app.usage.models import Plan
from app.usage.money import NANO, to_usd

UNLIMITED = "unlimited"
MOST = 10**15
# A bucket's token lasts whole microseconds.
MOST_A_MINUTE = 10**6
MOST_USD = 10**9
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,49}")
_KEYS = {key_of(limit, scope): (limit, scope) for limit, scope in LIMITS}

Found = dict[str, object]


class PlanError(EaselError):
    """What was asked of a plan is not possible; the message is one sentence."""


async def list_all(database: Database) -> list[Found]:
    async with database.identity() as session:
        return [_shown(plan) for plan in await session.scalars(select(Plan).order_by(Plan.name))]


async def show(database: Database, name: str) -> Found:
    async with database.identity() as session:
        plan = await session.get(Plan, name)
    if plan is None:
        raise await unknown(database, name)
    return _shown(plan)


async def change(database: Database, name: str, given: Sequence[str]) -> Found:
    """Set the limits given as `key=value`; a plan that is not there yet is made, unlimited in what is not given."""
    if not _NAME.fullmatch(name):
        raise PlanError(f"{name!r} cannot name a plan: use lower-case letters, digits, - and _.")
    values = parse(given)
    statement = insert(Plan).values(name=name, **values)
    # Without a value it is only made.
    same = statement.on_conflict_do_update(index_elements=[Plan.name], set_=values or {"name": name})
    async with database.identity() as session:
        return _shown((await session.scalars(same.returning(Plan))).one())


async def require(database: Database, name: str) -> None:
    """Raise SettingsError where new tenants would get a plan that is not there."""
    async with database.identity() as session:
        found = await session.get(Plan, name)
    if found is None:
        raise SettingsError(f"DEFAULT_PLAN: {await unknown(database, name)}")


async def unknown(database: Database, name: str) -> PlanError:
    async with database.identity() as session:
        names = (await session.scalars(select(Plan.name).order_by(Plan.name))).all()
    return PlanError(f"There is no plan {name!r}; there are {', '.join(names)}. `easel plans set` makes one.")


def parse(given: Sequence[str]) -> Mapping[str, int | None]:
    """The columns that the `key=value` name. Raises PlanError."""
    found: dict[str, int | None] = {}
    for one in given:
        key, is_there, value = one.partition("=")
        if not is_there or key not in _KEYS:
            raise PlanError(f"{one!r} sets no limit: give key=value, where key is one of {', '.join(_KEYS)}.")
        limit, scope = _KEYS[key]
        found[column_of(limit, scope)] = None if value == UNLIMITED else _parsed(key, limit, value)
    return found


def _parsed(key: str, limit: Limit, value: str) -> int:
    if limit == Limit.SPEND_PER_MONTH:
        try:
            nano = Decimal(value) * NANO
        except ArithmeticError:  # no number, or one beyond all bounds
            nano = Decimal(0)
        if not (nano.is_finite() and 0 < nano <= MOST_USD * NANO and nano == nano.to_integral_value()):
            raise PlanError(
                f"{key}: {value!r} is no amount: give USD of more than 0, {MOST_USD} at most, with nine places or"
                f" fewer, or {UNLIMITED}."
            )
        return int(nano)
    most = MOST_A_MINUTE if limit == Limit.RUNS_PER_MINUTE else MOST
    if not (value.isascii() and value.isdigit() and len(value) <= len(str(most)) and 0 < int(value) <= most):
        raise PlanError(f"{key}: {value!r} is no limit: give a whole number from 1 to {most}, or {UNLIMITED}.")
    return int(value)


def _shown(plan: Plan) -> Found:
    found: Found = {"name": plan.name}
    for key, (limit, scope) in _KEYS.items():
        allowed = limit.of(plan, scope)
        found[key] = to_usd(allowed) if limit == Limit.SPEND_PER_MONTH else allowed
    return found
