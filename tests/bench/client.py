"""A reader of event streams that costs little, so that many fit on the core beside the measured process."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

_STAMP = re.compile(rb"(\d+\.\d{6}) ")
_END = re.compile(rb'"type": ?"(run\.(?:completed|failed|cancelled))"')
_CONVERSATION = re.compile(rb'"conversation_id": ?"([^"]+)"')
_KEPT = 64
"""Bytes looked at again with the next piece: more than a stamp or the type of an event."""
_HEAD = 4096
"""Bytes kept from the start: the first event."""


@dataclass
class Samples:
    """(when it came, how long ago it was sent) of each stamped delta, in seconds."""

    taken: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    recording: bool = False

    def between(self, start: float, stop: float) -> list[float]:
        return [delay for at, delay in self.taken if start <= at < stop]


class Reader(asyncio.Protocol):
    """One request and its stream, read to the terminal event."""

    def __init__(self, request: bytes, samples: Samples) -> None:
        self._request = request
        self._samples = samples
        self._kept = b""
        loop = asyncio.get_running_loop()
        self.sent_at = 0.0
        self.created_at = 0.0
        self.started_at = 0.0
        self.bytes = 0
        self.head = b""
        self.first_stamp: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.sent_at = time.monotonic()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self.bytes < _HEAD:
            self.head += data
        self.bytes += len(data)
        data = self._kept + data
        if not self.created_at and b"run.created" in data:
            self.created_at = now
        if not self.started_at and b"run.started" in data:
            self.started_at = now
        done = 0
        for stamp in _STAMP.finditer(data):
            done = stamp.end()
            if self._samples.recording:
                self._samples.taken.append((now, now - float(stamp[1])))
        if done and not self.first_stamp.done():
            self.first_stamp.set_result(None)
        if (found := _END.search(data)) and not self.ended.done():
            self.ended.set_result(found[1].decode())
            if self.transport is not None:
                self.transport.close()
        self._kept = data[max(done, len(data) - _KEPT) :]

    @property
    def conversation_id(self) -> str:
        found = _CONVERSATION.search(self.head)
        return found[1].decode() if found else ""

    def leave(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for one in (self.ended, self.first_stamp):
            if not one.done():
                one.set_exception(exc or ConnectionError(f"the stream ended early: {self._kept!r}"))
                one.exception()  # looked at, also where nobody waits for it


@dataclass(frozen=True)
class Target:
    """Where runs are started, and as whom."""

    base_url: str
    authorization: str = ""
    fields: tuple[tuple[str, str], ...] = (("agent_key", "assistant"),)

    async def run(self, text: str, samples: Samples | None = None, **fields: object) -> Reader:
        """A started run, whose stream is being read."""
        body = json.dumps({"input": text, **dict(self.fields), **fields}).encode()
        return await self._open("POST", "/v1/runs", body, samples)

    async def follow(self, run_id: str, samples: Samples | None = None) -> Reader:
        return await self._open("GET", f"/v1/runs/{run_id}/events", b"", samples)

    async def _open(self, method: str, path: str, body: bytes, samples: Samples | None) -> Reader:
        place = urlsplit(self.base_url)
        head = [f"{method} {path} HTTP/1.1", f"Host: {place.netloc}", "Accept: text/event-stream"]
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        head += [f"Authorization: {self.authorization}"] if self.authorization else []
        request = ("\r\n".join(head) + "\r\n\r\n").encode() + body
        loop = asyncio.get_running_loop()
        _, reader = await loop.create_connection(
            lambda: Reader(request, samples or Samples()), place.hostname or "", place.port or 80
        )
        return reader

    async def turn(self, text: str, **fields: object) -> Reader:
        """A run that has completed."""
        reader = await self.run(text, None, **fields)
        ended = await asyncio.wait_for(reader.ended, 60)
        if ended != "run.completed":
            raise RuntimeError(f"a run ended as {ended}")
        return reader
