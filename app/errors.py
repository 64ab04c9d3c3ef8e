"""What a service may raise; app/problems.py turns it into HTTP."""

import logging
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NotRequired
from uuid import UUID

import asyncpg
from pydantic import BeforeValidator
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from typing_extensions import TypedDict, Unpack

from app import EaselError
from app.error_codes import ErrorCode

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2

FloorName = Literal[
    "anonymous_requests_per_minute",
    "conversation_queued_runs",
    "sign_ins_at_once",
    "tenant_queued_runs",
    "tenant_upload_bytes",
    "tenant_uploads",
    "user_streams",
]
"""The limits that need no plan."""
PlanLimitName = Literal[
    "images_per_day",
    "runs_at_once",
    "runs_per_minute",
    "spend_per_month_usd",
    "stored_bytes",
    "streams_at_once",
]
LimitName = FloorName | PlanLimitName
LimitScope = Literal["address", "conversation", "process", "tenant", "user"]


class LimitFacts(TypedDict):
    """Which limit, whose, and how many it allows; of a plan's limit also how it stands, money as decimal strings."""

    limit: LimitName
    scope: LimitScope
    allowed: int | str
    used: NotRequired[int | str]
    reserved: NotRequired[int | str]
    resets_at: NotRequired[datetime | None]


class FieldError(TypedDict):
    """One faulty field: its dotted name, what is wrong with it, what was given (shortened)."""

    field: str
    message: str
    given: str


class AppError(EaselError):
    """An error with a meaning for the caller; its code fixes the status, a subclass the title."""

    title: str = "Internal error"
    code: ErrorCode = ErrorCode.INTERNAL_ERROR

    def __init__(
        self,
        detail: str,
        *,
        code: ErrorCode | None = None,
        errors: Sequence[FieldError] = (),
        headers: dict[str, str] | None = None,
        run_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.errors = list(errors)
        self.headers = headers or {}
        self.run_id = run_id

    @property
    def status(self) -> int:
        return self.code.status or 500


class UnreadableBody(AppError):
    title = "Bad Request"
    code = ErrorCode.UNREADABLE_BODY


class RequestTimeout(AppError):
    title = "Request Timeout"
    code = ErrorCode.REQUEST_TIMEOUT


class HeadTooLarge(AppError):
    title = "Request Header Fields Too Large"
    code = ErrorCode.HEAD_TOO_LARGE

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The request's line and headers may have {max_bytes} bytes at most.")


class Invalid(AppError):
    title = "Invalid request"
    code = ErrorCode.INVALID_REQUEST


class Unauthenticated(AppError):
    title = "Not signed in"
    code = ErrorCode.UNAUTHENTICATED

    def __init__(self, detail: str, *, code: ErrorCode | None = None) -> None:
        super().__init__(detail, code=code, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(AppError):
    """`needs_role` or `needs_scope` is what the caller lacks."""

    title = "Not allowed"
    code = ErrorCode.FORBIDDEN

    def __init__(
        self,
        detail: str,
        *,
        code: ErrorCode | None = None,
        needs_role: str | None = None,
        needs_scope: str | None = None,
    ) -> None:
        super().__init__(detail, code=code)
        self.needs_role = needs_role
        self.needs_scope = needs_scope


class UserRequired(Forbidden):
    def __init__(self) -> None:
        super().__init__("No API key may do this: sign in, and send the access token.", code=ErrorCode.USER_REQUIRED)


class NotFound(AppError):
    """A thing that is not there, or not there for this caller: both answer alike."""

    title = "Not found"
    code = ErrorCode.NOT_FOUND

    def __init__(self, what: str) -> None:
        super().__init__(f"There is no such {what}.")


class NoRoute(AppError):
    title = "Not found"
    code = ErrorCode.NOT_FOUND


class MethodNotAllowed(AppError):
    title = "Method Not Allowed"
    code = ErrorCode.METHOD_NOT_ALLOWED


class Conflict(AppError):
    title = "Conflict"

    def __init__(
        self, detail: str, *, code: ErrorCode, headers: dict[str, str] | None = None, run_id: str | None = None
    ) -> None:
        super().__init__(detail, code=code, headers=headers, run_id=run_id)


class TooLarge(AppError):
    title = "Too large"
    code = ErrorCode.TOO_LARGE


class OverLimit(AppError):
    """One more would exceed a limit."""

    title = "Too many"

    def __init__(
        self,
        detail: str,
        facts: LimitFacts,
        *,
        code: ErrorCode | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail, code=code, headers=headers)
        self.facts = facts


class LimitExceeded(OverLimit):
    """It is free again after `retry_after` seconds."""

    code = ErrorCode.LIMIT_EXCEEDED

    def __init__(self, detail: str, *, retry_after: float, **facts: Unpack[LimitFacts]) -> None:
        super().__init__(detail, facts, headers={"Retry-After": str(max(math.ceil(retry_after), 1))})


class BudgetExceeded(OverLimit):
    """No wait gives it back."""

    title = "Too expensive"
    code = ErrorCode.BUDGET_EXCEEDED


class TooManyAttempts(AppError):
    """Too many passwords or tokens were tried, right or wrong; the next one counts after `retry_after` seconds."""

    title = "Too many attempts"
    code = ErrorCode.TOO_MANY_ATTEMPTS

    def __init__(self, retry_after: float) -> None:
        seconds = max(math.ceil(retry_after), 1)
        detail = f"There were too many attempts: try again in {seconds} seconds."
        super().__init__(detail, headers={"Retry-After": str(seconds)})


class Unavailable(AppError):
    title = "Unavailable"
    code = ErrorCode.UNAVAILABLE

    def __init__(self, detail: str, *, code: ErrorCode | None = None) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


class TooManyConnections(AppError):
    title = "Unavailable"
    code = ErrorCode.TOO_MANY_CONNECTIONS

    def __init__(self, allowed: int) -> None:
        detail = f"This process serves {allowed} connections already; try again in a moment."
        super().__init__(detail, headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


def id_of(what: str) -> BeforeValidator:
    """For `Annotated[UUID, id_of("run")]`: a malformed id answers like one that never was."""

    def parse(value: object) -> UUID:
        if isinstance(value, UUID):
            return value
        try:
            return UUID(str(value))
        except ValueError:
            raise NotFound(what) from None

    return BeforeValidator(parse, json_schema_input_type=UUID)


# What asyncpg raises while a server starts, stops or is gone, or refuses the login: a password is changed on the server
# first, a database is restored under the name of the one before.
CONNECTION_FAULTS = (
    OSError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InternalClientError,
)


def is_connection_error(error: Exception) -> bool:
    """Whether the same work may succeed once the database is back."""
    if isinstance(error, DBAPIError):
        driver_error = error.orig.__cause__ if error.orig is not None else None
        return error.connection_invalidated or isinstance(driver_error, CONNECTION_FAULTS)
    return isinstance(error, (*CONNECTION_FAULTS, PoolTimeout))
