"""Connections broken off as a directive asks."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from offline.directives import Directives
from offline.generation import Generation

_FLUSH_SECONDS = 0.05
_TEXT_BEFORE_CUT = 3


async def with_faults(request: Request, generation: Generation, directives: Directives) -> AsyncIterator[bytes]:
    """The generation's frames to the client that asked for them, broken off where a directive says so."""
    broken_off = next((name for name in ("cut", "eof", "silence") if name in directives), "eof")
    limit, room = int(directives.number(broken_off, 0)), int(directives.number("cut_bytes", 0))
    sent = texts = 0
    async for frame in generation.follow():
        if limit and sent == limit:
            break
        if room and room <= len(frame):
            yield frame[:room]
            broken_off = "cut"
            break
        room -= len(frame) if room else 0
        if "eof" in directives and frame.startswith((b"event: response.completed", b"event: response.incomplete")):
            break
        yield frame
        sent += 1
        texts += frame.startswith(b"event: response.output_text.delta")
        if broken_off != "eof" and not limit and texts == _TEXT_BEFORE_CUT:
            break
    if broken_off == "cut":
        await abort(request)
    if broken_off == "silence":
        # Until the client has had enough.
        await asyncio.Event().wait()


async def abort(request: Request) -> Response:
    """Drop the TCP connection without a goodbye; the answer returned goes nowhere."""
    await asyncio.sleep(_FLUSH_SECONDS)
    cycle: Any = getattr(request.receive, "__self__", None)  # uvicorn's, the only server this runs on
    cast(asyncio.Transport, cycle.transport).abort()
    await disconnected(request)
    return Response()


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
