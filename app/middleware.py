"""For every request: its id, the limit on its body, one line in the log."""

import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics, traces
from app.db import Database
from app.errors import AppError, FieldError, TooLarge
from app.logs import tag, tag_only
from app.problems import problem, to_response, unexpected
from app.request_context import RequestContext, in_request, trace_id_of
from app.settings import Settings

log = logging.getLogger(__name__)

CheckCredential = Callable[[Database, str], Awaitable[AppError | None]]
TellRate = Callable[[Database, str, str], Awaitable[None]]

START_RUN = ("POST", "/v1/runs")
UPLOAD = ("POST", "/v1/attachments")
# What follows in the path is a permission.
SECRET_BELOW = ("/v1/files/", "/v1/erasures/")
# No route reads a body that is sent with them: it is dropped as it comes, however large it is.
BODILESS = ("GET", "HEAD")
PUBLIC = (("POST", "/v1/signup"), ("POST", "/v1/tokens"), ("POST", "/v1/tokens/refresh"))
# Asked every few seconds; they are logged where they fail.
PROBES = ("/livez", "/readyz", "/metrics")
# The bytes that a form adds to its file.
ENVELOPE_BYTES = 16 * 1024
# Of a body from nobody: to sign up or in takes less.
ANONYMOUS_BYTES = 16 * 1024


# On every answer that says nothing else itself: no guessing of types, no address in a Referer, no page around ours.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
)


@dataclass(frozen=True)
class BodyLimit:
    """How large a body may be, and what its sender is told of it: the limit of one of its fields."""

    max_bytes: int
    setting: str
    field: str = "body"
    overhead: int = 0

    def __str__(self) -> str:
        return f"The {self.field} may have {self.max_bytes - self.overhead} bytes at most ({self.setting})."


class RequestMiddleware:
    """Plain ASGI, so that streams pass untouched.

    `check_credential` says what is wrong with an Authorization header, `tell_rate` adds to a refused start's answer
    how many runs may start.
    """

    def __init__(
        self, app: ASGIApp, *, settings: Settings, check_credential: CheckCredential, tell_rate: TellRate
    ) -> None:
        self._app = app
        self._check_credential = check_credential
        self._tell_rate = tell_rate
        self._usual = BodyLimit(int(settings.request_body_max_mb * 1024 * 1024), "REQUEST_BODY_MAX_MB")
        self._anonymous = BodyLimit(ANONYMOUS_BYTES, "for requests without a credential")
        self._unread = BodyLimit(sys.maxsize, "")
        self._upload = BodyLimit(settings.upload_max_bytes + ENVELOPE_BYTES, "UPLOAD_MAX_MB", "file", ENVELOPE_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext.of(scope["headers"], scope.get("client"))
        scope["request_id"] = context.request_id
        # uvicorn starts a request that was sent ahead in the task of the one before, and its own lines about a request
        # follow after the end of this call.
        tag_only(request_id=context.request_id)
        if scope["path"] in PROBES:
            await self._answer(scope, receive, send, context)
            return
        with traces.span(scope["method"], kind="server", parent=context.traceparent):
            # What the request sets off belongs to its own span, and with that to the caller's trace.
            if own := traces.traceparent():
                context = replace(context, traceparent=own)
            await self._answer(scope, receive, send, context)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        tag(trace_id=trace_id_of(context.traceparent))
        with in_request(context):
            await self._answer_in(scope, receive, send, context)

    async def _answer_in(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                metrics.response_began(status, time.monotonic() - started)
                if (scope["method"], scope["path"]) == START_RUN and status >= HTTPStatus.BAD_REQUEST:
                    await self._tell_rate_of(scope)
                told = [(name.lower().encode(), value.encode()) for name, value in context.headers.items()]
                message["headers"] = complete_headers([*message.get("headers", []), *told], scope["request_id"])
            await send(message)

        try:
            limit = self._limit_of(scope)
            if fault := await self._fault(scope, limit):
                await problem(Request(scope), fault)(scope, receive, send_with_id)
            else:
                await self._app(scope, self._limited(receive, limit), send_with_id)
        except Exception as error:
            response = unexpected(Request(scope), error)
            # Of an answer that has begun the rest is missing: uvicorn closes the connection.
            if not status:
                await response(scope, receive, send_with_id)
        finally:
            milliseconds = round((time.monotonic() - started) * 1000, 1)
            line = {"method": scope["method"], "path": _shown(scope["path"]), "status": status, "ms": milliseconds}
            quiet = scope["path"] in PROBES and status < HTTPStatus.BAD_REQUEST
            log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={**line, "client": context.ip})
            _annotate_span(scope, status)

    async def _fault(self, scope: Scope, limit: BodyLimit) -> AppError | None:
        """What is known before the body is read: FastAPI parses a body first, and asks for the credential then."""
        headers = Headers(scope=scope)
        declared = int(length) if (length := headers.get("content-length", "0")).isdigit() else 0
        # A route that wants a credential says so itself.
        if limit is not self._anonymous and declared > limit.max_bytes:
            given = f"{declared} bytes" if limit.field == "body" else f"a form of {declared} bytes"
            fault = FieldError(field=limit.field, message=str(limit), given=given)
            return TooLarge(str(limit), errors=[fault])
        # To parse a megabyte of fields takes 30 ms, in which nobody else is served.
        if limit is self._usual and (declared > ANONYMOUS_BYTES or "transfer-encoding" in headers):
            return await self._check_credential(scope["app"].state.database, headers["authorization"])
        return None

    async def _tell_rate_of(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if credential := headers.get("authorization"):
            await self._tell_rate(scope["app"].state.database, credential, headers.get("x-tenant-id", ""))

    def _limit_of(self, scope: Scope) -> BodyLimit:
        if scope["method"] in BODILESS:
            return self._unread
        asked = (scope["method"], scope["path"])
        if asked in PUBLIC or all(name != b"authorization" for name, _ in scope["headers"]):
            return self._anonymous
        return self._upload if asked == UPLOAD else self._usual

    def _limited(self, receive: Receive, limit: BodyLimit) -> Receive:
        seen = 0

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit.max_bytes:
                raise HTTPException(413, str(limit))
            return message

        return count


def _annotate_span(scope: Scope, status: int) -> None:
    """By OpenTelemetry's conventions for HTTP servers; the path is the route's, whose names stand for what was sent."""
    route = getattr(scope.get("route"), "path", None)
    facts = {
        "http.request.method": scope["method"],
        "http.response.status_code": status or None,
        "http.route": route,
        "url.path": _shown(scope["path"]),
        "url.scheme": scope["scheme"],
    }
    failed = not status or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    traces.annotate(
        facts, name=f"{scope['method']} {route or ''}".strip(), error=str(status or "disconnect") if failed else ""
    )


def _shown(path: str) -> str:
    """For the log: without the permission that a path may hold."""
    return next((before for before in SECRET_BELOW if path.startswith(before)), path)


def complete_headers(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    given = list(headers)
    names = {name for name, _ in given}
    guards = [header for header in SECURITY_HEADERS if header[0] not in names]
    return [*given, *guards, (b"x-request-id", request_id.encode())]


def raw_answer(error: AppError, request_id: str) -> bytes:
    """The whole answer of a connection that is closed before, or although, the app has seen its request."""
    response = to_response(error, request_id)
    headers = [*complete_headers(response.raw_headers, request_id), (b"connection", b"close")]
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()]
    lines += [name + b": " + value + b"\r\n" for name, value in headers]
    return b"".join([*lines, b"\r\n", bytes(response.body)])
