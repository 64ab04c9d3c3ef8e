"""uvicorn's HTTP protocol with limits: what a connection may send before the app sees it, and how slowly.

It and app/http_rejection.py alone build on uvicorn's inner parts. A connection owes a head, or a body, or nothing;
`_watch` decides which after each piece of data, so that a request that arrives whole costs no timer.
"""

import asyncio
import logging
from functools import partial
from typing import Any, ClassVar, Literal, cast
from weakref import ref

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.direct_write import EXTENSION
from app.errors import HeadTooLarge, RequestTimeout, TooManyConnections
from app.http_rejection import RejectingProtocol
from app.settings import Settings

log = logging.getLogger(__name__)

# The request line and all headers, or what comes between the pieces of a body: lengths of chunks, and trailers.
HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0
# Of a connection beyond CONNECTIONS_MAX, which has a place of the few that are kept for probes.
SURPLUS_HEAD_SECONDS = 1.0
# A body must arrive so fast, on average over a window, while nothing but the client delays it.
BODY_BYTES_PER_SECOND = 1024
BODY_WINDOW_SECONDS = 10.0
# Connections beyond CONNECTIONS_MAX that are heard at all, and what they may ask.
SURPLUS = 64
PROBES = (b"/livez", b"/readyz")

Owed = Literal["head", "body"] | None


def http_protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """For uvicorn's `http`."""

    class Protocol(LimitedProtocol):
        connections_max = settings.connections_max

    return Protocol


class LimitedProtocol(RejectingProtocol):
    connections_max: ClassVar[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._surplus = False
        # Of the message that is arriving:
        self._head_begun = False
        self._head_bytes = 0
        self._progress = False
        # The deadline of what is owed:
        self._owed: Owed = None
        self._window_bytes = 0
        self._expected_continue = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        surplus = len(self.connections) - self.connections_max
        self._surplus = surplus > 0
        if surplus > SURPLUS:
            transport.abort()
            return
        if surplus == 1:
            log.warning("connections.full", extra={"connections_max": self.connections_max})
        self._expect("head")

    def data_received(self, data: bytes) -> None:
        self._held_bytes += len(data)
        if self._rejected:
            self._drop()
            return
        self._window_bytes += len(data)
        self._progress = False
        super().data_received(data)
        if self._progress:
            self._held_bytes = 0
        if self._held_bytes > HEAD_BYTES:
            self._reject(HeadTooLarge(HEAD_BYTES))
        else:
            self._watch()

    def on_message_begin(self) -> None:
        self._head_begun, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._counts(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers of a chunked body come here, too.
        if self._counts(len(name) + len(value) + len(b": \r\n")):
            super().on_header(name, value)

    def _counts(self, size: int) -> bool:
        self._head_bytes += size
        return self._head_bytes <= HEAD_BYTES

    def on_headers_complete(self) -> None:
        self._head_begun, self._progress = False, True
        if self._rejected:
            return
        if self._head_bytes > HEAD_BYTES:
            self._reject(HeadTooLarge(HEAD_BYTES))
            return
        if self._surplus and self.url.partition(b"?")[0] not in PROBES:
            self._reject(TooManyConnections(self.connections_max))
            return
        self._in_body = True
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # Weak, as the cycle holds its scope.
        cast(Any, cycle.scope)["extensions"] = {EXTENSION: partial(_write_at_once, ref(cycle))}
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._progress = True
        if not self._rejected:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._progress = False, True
        if not self._rejected:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._head_begun and not self._left:
            self._expect("head")

    def _watch(self) -> None:
        """Which deadline holds from here on."""
        if self._rejected or self._left:
            return
        if self._in_body:
            self._expect("body")
        elif self._is_responding():
            # The client may wait for the end of this response before it sends the next head.
            self._expect(None)
        else:
            self._expect("head")

    def _expect(self, owed: Owed) -> None:
        if owed == self._owed:
            return
        self._stop_timer()
        self._owed = owed
        if owed == "head":
            seconds = SURPLUS_HEAD_SECONDS if self._surplus else HEAD_SECONDS
            self._timer = self.loop.call_later(seconds, self._end_of_head)
        elif owed == "body":
            self._open_window()

    def _end_of_head(self) -> None:
        if self._head_begun:
            self._reject(RequestTimeout(f"The request's head did not arrive within {HEAD_SECONDS:g} seconds."))
        else:
            self.transport.close()

    def _open_window(self) -> None:
        self._window_bytes = 0
        self._expected_continue = self._awaits_continue()
        self._timer = self.loop.call_later(BODY_WINDOW_SECONDS, self._end_of_window)

    def _end_of_window(self) -> None:
        # The client is not to blame where the app read nothing, or let it wait for "100 Continue".
        paused = cast(_Flow, self.flow).was_paused()
        enough = self._window_bytes >= BODY_BYTES_PER_SECOND * BODY_WINDOW_SECONDS
        if enough or paused or self._expected_continue or self._awaits_continue():
            self._open_window()
        else:
            self._reject(RequestTimeout(f"The body arrives too slowly: send {BODY_BYTES_PER_SECOND} bytes a second."))

    def _awaits_continue(self) -> bool:
        return self._is_responding() and self.cycle.waiting_for_100_continue


def _write_at_once(cycle_ref: ref[RequestResponseCycle], body: bytes) -> bool:
    """See `DirectWrite`; what `cycle.send` does with a piece of a chunked body."""
    cycle = cycle_ref()
    if cycle is None or not cycle.chunked_encoding or cycle.response_complete:
        return False
    if cycle.flow.write_paused or cycle.transport.is_closing():
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
    return True


class _Flow(FlowControl):
    """Remembers whether reading was paused since it was last asked."""

    _paused = False

    def pause_reading(self) -> None:
        self._paused = True
        super().pause_reading()

    def was_paused(self) -> bool:
        paused, self._paused = self._paused, self.read_paused
        return paused
