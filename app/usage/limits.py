"""The limits of a plan: how much of each is used, what one more of something meets, and how that is told."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from app.error_codes import ErrorCode
from app.errors import AppError, BudgetExceeded, LimitExceeded, LimitFacts
from app.usage.models import Plan
from app.usage.money import to_usd

MINUTE = timedelta(minutes=1)
# When a run or a stream ends, nobody can tell.
RETRY_SECONDS = 5.0


class Scope(StrEnum):
    TENANT = "tenant"
    USER = "user"


class Limit(StrEnum):
    """In the order in which they refuse."""

    RUNS_PER_MINUTE = "runs_per_minute"
    RUNS_AT_ONCE = "runs_at_once"
    STREAMS_AT_ONCE = "streams_at_once"
    IMAGES_PER_DAY = "images_per_day"
    SPEND_PER_MONTH = "spend_per_month_usd"
    STORED_BYTES = "stored_bytes"

    def of(self, plan: Plan, scope: Scope) -> int | None:
        """How much the plan allows, money in nano-dollars; None is unlimited."""
        return getattr(plan, column_of(self, scope))


LIMITS = [(limit, scope) for limit in Limit for scope in Scope if (limit, scope) != (Limit.STORED_BYTES, Scope.USER)]
"""In the order in which they refuse: the tenant's, then the person's."""


def key_of(limit: Limit, scope: Scope) -> str:
    """What an operator calls it."""
    return limit.value if scope == Scope.TENANT else f"user_{limit}"


def column_of(limit: Limit, scope: Scope) -> str:
    return key_of(limit, scope).replace("_usd", "_nano")


def is_limited(plan: Plan) -> bool:
    return any(limit.of(plan, scope) is not None for limit, scope in LIMITS)


@dataclass(frozen=True)
class Used:
    """By a tenant or a person: at once, this day and this month (UTC); `reserved_…` is what open runs hold."""

    full_at: datetime | None = None
    runs: int = 0
    streams: int = 0
    images: int = 0
    reserved_images: int = 0
    spent_nano: int = 0
    reserved_nano: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True)
class LimitState:
    """Money is in nano-dollars; `resets_at` is None for what no time gives back."""

    limit: Limit
    scope: Scope
    allowed: int | None
    used: int
    reserved: int = 0
    resets_at: datetime | None = None

    def refuses(self, more: int) -> bool:
        return self.allowed is not None and self.used + self.reserved + more > self.allowed

    def shown(self, amount: int) -> int | str:
        """Money as a decimal string."""
        return to_usd(amount) or "" if self.limit == Limit.SPEND_PER_MONTH else amount


def token_of(plan: Plan, scope: Scope) -> timedelta | None:
    """How long it takes until one more run may be started; None where that is unlimited."""
    size = Limit.RUNS_PER_MINUTE.of(plan, scope)
    return None if size is None else MINUTE // size


def states(plan: Plan, used: Mapping[Scope, Used], at: datetime) -> list[LimitState]:
    """Of every limit, in the order in which they refuse."""
    return [
        LimitState(limit, scope, limit.of(plan, scope), *_used(limit, used[scope], token_of(plan, scope), at))
        for limit, scope in LIMITS
    ]


def _used(limit: Limit, used: Used, token: timedelta | None, at: datetime) -> tuple[int, int, datetime | None]:
    """How much is used, how much reserved, and when it resets."""
    full_at = used.full_at if token and used.full_at and used.full_at > at else None
    return {
        Limit.RUNS_PER_MINUTE: (-((at - full_at) // token) if token and full_at else 0, 0, full_at),
        Limit.RUNS_AT_ONCE: (used.runs, 0, None),
        Limit.STREAMS_AT_ONCE: (used.streams, 0, None),
        Limit.IMAGES_PER_DAY: (used.images, used.reserved_images, next_day(at)),
        Limit.SPEND_PER_MONTH: (used.spent_nano, used.reserved_nano, next_month(at)),
        Limit.STORED_BYTES: (used.stored_bytes, 0, None),
    }[limit]


def next_day(at: datetime) -> datetime:
    return datetime(at.year, at.month, at.day, tzinfo=UTC) + timedelta(days=1)


def next_month(at: datetime) -> datetime:
    return (datetime(at.year, at.month, 1, tzinfo=UTC) + timedelta(days=32)).replace(day=1)


def judge(found: Sequence[LimitState], wanted: Mapping[Limit, int | None], at: datetime) -> None:
    """Raise LimitExceeded or BudgetExceeded for the first limit that so much more would exceed.

    None is an amount of money that is not known, because a model has no price: it is refused wherever spending is
    limited.
    """
    for state in found:
        if state.limit not in wanted or state.allowed is None:
            continue
        more = wanted[state.limit]
        if more is None:
            raise _refusal(state, at, "A model of this agent has no price, and spending is limited", unpriced=True)
        if state.refuses(more):
            raise _refusal(state, at, _sentence(state))


_SENTENCES = {
    Limit.RUNS_PER_MINUTE: "may start {} runs a minute",
    Limit.RUNS_AT_ONCE: "may have {} runs open at once",
    Limit.STREAMS_AT_ONCE: "may follow {} runs at once",
    Limit.IMAGES_PER_DAY: "may draw {} images a day",
    Limit.SPEND_PER_MONTH: "may spend {} USD a month",
    Limit.STORED_BYTES: "may store {} bytes of images",
}


def _sentence(state: LimitState) -> str:
    whose = "Your organisation" if state.scope == Scope.TENANT else "You"
    return f"{whose} {_SENTENCES[state.limit].format(state.shown(state.allowed or 0))}"


def _refusal(state: LimitState, at: datetime, sentence: str, *, unpriced: bool = False) -> AppError:
    used, reserved = state.shown(state.used), state.shown(state.reserved)
    detail = f"{sentence}; {used} are used, {reserved} reserved."
    facts = LimitFacts(
        limit=state.limit.value,
        scope=state.scope.value,
        allowed=state.shown(state.allowed or 0),
        used=used,
        reserved=reserved,
        resets_at=state.resets_at,
    )
    if unpriced:
        return BudgetExceeded(detail, facts, code=ErrorCode.UNPRICED_MODEL)
    if state.limit in (Limit.SPEND_PER_MONTH, Limit.STORED_BYTES):
        return BudgetExceeded(detail, facts)
    return LimitExceeded(detail, retry_after=_seconds_until_one(state, at), **facts)


def _seconds_until_one(state: LimitState, at: datetime) -> float:
    if state.resets_at is None:
        return RETRY_SECONDS
    if state.limit == Limit.RUNS_PER_MINUTE:
        full = MINUTE // (state.allowed or 1) * ((state.allowed or 1) - 1)
        return (state.resets_at - full - at).total_seconds()
    return (state.resets_at - at).total_seconds()


def rate_headers(
    plan: Plan, full_at: Mapping[Scope, datetime | None], at: datetime, *, refused: bool = False
) -> dict[str, str]:
    """RateLimit-Policy and RateLimit of the scope that leaves fewer runs; none where both are unlimited.

    `t` is until all may be started, where one was `refused` until one may.
    https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-11
    """
    left = sorted(_left(plan, full_at, at))
    if not left:
        return {}
    remaining, size, missing = left[0]
    wait = missing - MINUTE // size * (size - 1) if refused and not remaining else missing
    name = f'"{Limit.RUNS_PER_MINUTE}"'
    return {
        "RateLimit-Policy": f"{name};q={size};w={int(MINUTE.total_seconds())}",
        "RateLimit": f"{name};r={remaining};t={max(math.ceil(wait.total_seconds()), int(refused and not remaining))}",
    }


def _left(plan: Plan, full_at: Mapping[Scope, datetime | None], at: datetime) -> Iterator[tuple[int, int, timedelta]]:
    """Of each scope that is limited: the runs that are left, how many there may be, how long until they may."""
    for scope in Scope:
        size, token = Limit.RUNS_PER_MINUTE.of(plan, scope), token_of(plan, scope)
        if size is not None and token is not None:
            missing = max((full_at[scope] or at) - at, timedelta())
            yield max((token * size - missing) // token, 0), size, missing
