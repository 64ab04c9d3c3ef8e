"""uvicorn's HTTP protocol, which can end a connection with a problem of ours, whatever state it is in."""

import asyncio
import logging
from contextlib import suppress
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.db import uuid7
from app.errors import AppError, UnreadableBody
from app.middleware import raw_answer

log = logging.getLogger(__name__)

# How long, and for how many bytes, a client may go on sending what was rejected: closed at once, it would not see why.
LINGER_SECONDS = 2.0
LINGER_BYTES = 192 * 1024
# Between two reads of it: most clients have seen the answer by then, and nobody's megabytes keep the loop busy.
LINGER_PAUSE_SECONDS = 0.05


class RejectingProtocol(HttpToolsProtocol):
    """`_reject` ends the connection; what is sent to it afterwards is to be given to `_drop`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_body = False
        # Received since the last byte of a body, or the last whole head; the parser may hold as many.
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        # Once the connection has ended for us:
        self._rejected = False
        self._left = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        if not self._rejected:
            self._leave()
            super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        self._reject(UnreadableBody(msg))

    def _leave(self) -> None:
        self._left = True
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _reject(self, error: AppError) -> None:
        """Answer, unless another answer is on its way, and close; the app sees a client that has left."""
        if self._rejected or self._left:
            return
        self._rejected = True
        self._held_bytes = 0
        self._stop_timer()
        self._unset_keepalive_if_required()
        answerable = self._is_answerable()
        request_id = self._request_id()
        facts = {"code": error.code, "peer": self.client and self.client[0]}
        log.info("connection.rejected", extra={**facts, "request_id": request_id})
        if self._is_responding():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.pipeline.clear()
        if answerable:
            self.transport.write(raw_answer(error, request_id))
            self._linger()
        else:
            self.transport.close()

    def _is_answerable(self) -> bool:
        """Not beside another answer, and not for a request that has its answer already."""
        if self.transport.is_closing() or self.pipeline:
            return False
        if self._in_body:
            return self._is_responding() and not self.cycle.response_started
        return not self._is_responding()

    def _linger(self) -> None:
        """End our half, and read and drop for a while what the client sends yet."""
        with suppress(NotImplementedError, OSError):  # TLS has no halves
            self.transport.write_eof()
            self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
            self._pause()
            return
        self.transport.close()

    def _pause(self) -> None:
        self.flow.pause_reading()
        self.loop.call_later(LINGER_PAUSE_SECONDS, self.flow.resume_reading)

    def _drop(self) -> None:
        if self._held_bytes > LINGER_BYTES:
            self.transport.abort()
        else:
            self._pause()

    def _request_id(self) -> str:
        """That of the request whose body is arriving; a new one where the app has seen none."""
        known = cast(Any, self.cycle.scope).get("request_id") if self._in_body and self._is_responding() else None
        return known or str(uuid7())

    def _is_responding(self) -> bool:
        cycle = cast(Any, self.cycle)  # None before the first request
        return bool(self.pipeline) or (cycle is not None and not cycle.response_complete)
