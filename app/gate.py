"""What every request passes first: its id, the bound on its body, one line in the log."""

import logging
import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.db import uuid7
from app.errors import TooLarge, problem
from app.logs import tagged

log = logging.getLogger(__name__)


class Gate:
    """Plain ASGI, so that streams pass untouched."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = str(uuid7())
        scope["request_id"] = request_id
        started = time.monotonic()
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        with tagged(request_id=request_id):
            if self._declared(scope) > self._max:
                await problem(Request(scope), TooLarge(self._sentence()))(scope, receive, tell)
            else:
                await self._app(scope, self._bounded(receive), tell)
            line = {"method": scope["method"], "path": scope["path"].partition("/files/")[0], "status": status}
            log.info("request", extra={**line, "ms": round((time.monotonic() - started) * 1000, 1)})

    def _declared(self, scope: Scope) -> int:
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        return int(length) if length.isdigit() else 0

    def _bounded(self, receive: Receive) -> Receive:
        seen = 0

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max:
                raise HTTPException(TooLarge.status, self._sentence())
            return message

        return count

    def _sentence(self) -> str:
        return f"The body may have {self._max} bytes at most (REQUEST_BODY_MAX_MB)."
