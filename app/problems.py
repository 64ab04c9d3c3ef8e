"""How an error is reported: RFC 9457 problem+json, one handler for all of it."""

import json
import logging
import reprlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NotRequired, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import to_jsonable_python
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from typing_extensions import TypedDict

from app.error_codes import ErrorCode
from app.errors import (
    CONNECTION_FAULTS,
    AppError,
    FieldError,
    Forbidden,
    Invalid,
    LimitName,
    LimitScope,
    MethodNotAllowed,
    NoRoute,
    OverLimit,
    TooLarge,
    Unavailable,
    UnreadableBody,
    is_connection_error,
)
from app.field_messages import message_of

log = logging.getLogger(__name__)

# A small request must not make a large answer: what is beyond these is counted, not told.
MAX_FAULTS = 20
MAX_FAULTS_BYTES = 2_000
MAX_TEXT = 100
# What a field with such a name was given is not repeated.
SECRET_FIELDS = ("password", "secret", "token")


class Problem(TypedDict):
    """RFC 9457: what went wrong with a request. `code` is for programs, `detail` for users.

    `errors` names faulty fields; `run_id` is the run that keeps a conversation busy; `limit` is the limit that was
    reached, `scope` whose it is and `allowed` how many it allows; of a plan's limit, `used` and `reserved` say how it
    stands (money as decimal strings) and `resets_at` when it begins anew; `needs_role` or `needs_scope` is what the
    caller lacks.
    """

    type: str
    title: str
    status: int
    code: ErrorCode
    detail: str
    request_id: str
    errors: NotRequired[list[FieldError]]
    run_id: NotRequired[str]
    limit: NotRequired[LimitName]
    scope: NotRequired[LimitScope]
    allowed: NotRequired[int | str]
    used: NotRequired[int | str]
    reserved: NotRequired[int | str]
    resets_at: NotRequired[datetime | None]
    needs_role: NotRequired[str]
    needs_scope: NotRequired[str]


def problem(request: Request, error: AppError) -> JSONResponse:
    return to_response(error, request.scope["request_id"])


def to_response(error: AppError, request_id: str) -> JSONResponse:
    body: Problem = {
        "type": f"urn:easel:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": _utf8(error.detail),
        "request_id": request_id,
    }
    if error.errors:
        body["errors"] = _first(error.errors)
    if error.run_id:
        body["run_id"] = error.run_id
    if isinstance(error, OverLimit):
        body.update(cast(Any, error.facts))
    if isinstance(error, Forbidden):
        if error.needs_role:
            body["needs_role"] = error.needs_role
        if error.needs_scope:
            body["needs_scope"] = error.needs_scope
    return JSONResponse(to_jsonable_python(body), error.status, error.headers, media_type="application/problem+json")


def install_handlers(app: FastAPI, unavailable_errors: Sequence[type[Exception]]) -> None:
    """Map the exceptions of a route to problem+json; `unavailable_errors` mean that a dependency does not answer."""

    async def app_error(request: Request, error: Exception) -> JSONResponse:
        return problem(request, cast(AppError, error))

    async def unavailable(request: Request, error: Exception) -> JSONResponse:
        log.warning("dependency.unavailable", extra={"error": type(error).__name__})
        return problem(
            request, Unavailable("A dependency (database, Redis or storage) is unavailable; try again in a moment.")
        )

    async def database(request: Request, error: Exception) -> JSONResponse:
        return await unavailable(request, error) if is_connection_error(error) else unexpected(request, error)

    app.add_exception_handler(AppError, app_error)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, database)
    for kind in (*CONNECTION_FAULTS, PoolTimeout, *unavailable_errors):
        app.add_exception_handler(kind, unavailable)


def unexpected(request: Request, error: Exception) -> JSONResponse:
    """For what no handler knows; the request middleware answers with it, so that the line has the request's tags."""
    log.error("request.failed", exc_info=error)
    return problem(request, AppError("Something went wrong on our side; the log has it under this request_id."))


async def _validation(request: Request, error: Exception) -> JSONResponse:
    invalid = cast(RequestValidationError, error)
    faults = invalid.errors()
    fields = _field_errors(faults[:MAX_FAULTS], invalid.body)
    errors = _first(fields)
    places = len(faults) - len(faults[:MAX_FAULTS]) + len(fields)
    count = f" in {places} places" if places > len(errors) else ""
    summary = "; ".join(f"{fault['field']}: {fault['message']}" for fault in errors)
    return problem(request, Invalid(f"Request validation failed{count}. {summary}.", errors=errors))


def _field_errors(faults: Sequence[dict[str, Any]], body: object) -> list[FieldError]:
    """One for each faulty field, although a union reports a fault for each of its types."""
    by_place: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for fault in faults:
        by_place.setdefault(_place(fault, body), []).append(fault)
    # A field with a faulty one inside has the type that its sender meant: why the union's others do not fit is noise.
    outer = {place[:length] for place in by_place for length in range(1, len(place))}
    return [_field_error(place[1:], found) for place, found in by_place.items() if place not in outer]


def _place(fault: dict[str, Any], body: object) -> tuple[str, ...]:
    """`body`, `query` or `header`, then names that the client sent: pydantic puts those of a union's types between."""
    section, *parts = fault["loc"]
    if section != "body":
        return (section, *(str(part) for part in parts[:1]))
    # What is missing is no key of what was sent, and comes last.
    missing = [str(parts.pop())] if parts and fault["type"] == "missing" else []
    place: list[str] = [section]
    value: Any = body
    for part in parts:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            value = cast(Any, value[part])
            place.append(str(part))
    return (*place, *missing)


def _field_error(location: tuple[str, ...], faults: Sequence[dict[str, Any]]) -> FieldError:
    message = ", or ".join(dict.fromkeys(message_of(fault) for fault in faults))
    secret = any(part == "key" or any(word in part for word in SECRET_FIELDS) for part in location)
    return {
        "field": ".".join(location)[:MAX_TEXT] or "body",
        "message": message,
        "given": "(hidden)" if secret else _given(faults[0], location),
    }


def _given(fault: dict[str, Any], location: Sequence[str]) -> str:
    # A whole body is not repeated: it may hold a password.
    if fault["type"] == "missing" or not location:
        return ""
    return shown(fault.get("input"))


def shown(value: object) -> str:
    """What was given, shortened; the work is bounded, too, whatever the value's size."""
    return _repr.repr(value)[:MAX_TEXT]


def _first(errors: Sequence[FieldError]) -> list[FieldError]:
    """Those that fit into an answer, the first one always."""
    fitting: list[FieldError] = []
    size = 0
    for given in errors[:MAX_FAULTS]:
        fault = FieldError(field=_utf8(given["field"]), message=_utf8(given["message"]), given=_utf8(given["given"]))
        size += len(json.dumps(fault, ensure_ascii=False).encode())
        if fitting and size > MAX_FAULTS_BYTES:
            break
        fitting.append(fault)
    return fitting


def _utf8(text: str) -> str:
    """The name of a field may hold half a surrogate pair."""
    return text.encode(errors="replace").decode()


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = MAX_TEXT


# What Starlette and FastAPI raise by themselves.
_BY_STATUS = {400: UnreadableBody, 404: NoRoute, 405: MethodNotAllowed, 413: TooLarge}


async def _http(request: Request, error: Exception) -> JSONResponse:
    fault = cast(HTTPException, error)
    kind = _BY_STATUS.get(fault.status_code, AppError)
    detail = "No route for this path." if kind is NoRoute else str(fault.detail)
    return problem(request, kind(detail, headers=dict(fault.headers or {})))
