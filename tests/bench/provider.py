"""The provider of the bench: `python -m tests.bench.provider PORT`, a process that answers with made-up streams.

The text of the request says which: `[bench text deltas=20]` at once; `[bench text rate=50]`, each delta stamped, until
somebody POSTs to /stop, which answers with the size of the last request; `[bench image size=3MB seconds=0.9]`, its
pieces spread over that time.
"""

import asyncio
import itertools
import random
import re
import sys
from contextlib import suppress

import uvloop

from tests.bench import streams

_DIRECTIVE = re.compile(rb"\[bench (\w+)((?: \w+=[\w.]+)*)\]")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_PIECE = 256 * 1024


class Provider:
    """Serves streams; `stopping` is set to end the endless ones, and is a new one afterwards."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()
        self._last_length = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A reader that leaves: uvloop says so with a RuntimeError.
        with suppress(asyncio.IncompleteReadError, ConnectionError, RuntimeError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if head.startswith(b"POST /stop"):
                    self._stopping.set()
                    self._stopping = asyncio.Event()
                    size = b"%d" % self._last_length
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(size), size))
                else:
                    self._last_length = len(body)
                    await self._answer(writer, body)
                await writer.drain()
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        kind, options = _directive(body)
        writer.write(_HEAD)
        number = next(self._numbers)
        if kind == "image":
            await _image(writer, number, options.get("size", "3MB"), float(options.get("seconds", "0")))
        elif "rate" in options:
            await self._steady(writer, number, float(options["rate"]))
        else:
            count = int(options.get("deltas", "20"))
            deltas = [streams.delta(number, 4 + at, "word ") for at in range(count)]
            parts = [streams.begin(number), streams.message_begin(number), *deltas]
            for part in (*parts, streams.end(number, 4 + count, "word " * count, [])):
                writer.write(_chunk(part))
        writer.write(b"0\r\n\r\n")

    async def _steady(self, writer: asyncio.StreamWriter, number: int, rate: float) -> None:
        loop, stopping, texts = asyncio.get_running_loop(), self._stopping, list[str]()
        writer.write(_chunk(streams.begin(number) + streams.message_begin(number)))
        # Streams that all tick at once would wait for each other.
        due = loop.time() + random.random() / rate
        while not stopping.is_set():
            await asyncio.sleep(max(due - loop.time(), 0))
            due += 1 / rate
            texts.append(streams.stamped())
            writer.write(_chunk(streams.delta(number, 3 + len(texts), texts[-1])))
            await writer.drain()
        writer.write(_chunk(streams.end(number, 4 + len(texts), "".join(texts), [])))


async def _image(writer: asyncio.StreamWriter, number: int, size: str, seconds: float) -> None:
    whole = streams.image_turn(number, size)
    for piece in whole:
        if seconds:
            await asyncio.sleep(seconds / len(whole))
        for start in range(0, len(piece), _PIECE):
            writer.write(_chunk(piece[start : start + _PIECE]))
            await writer.drain()


def _directive(body: bytes) -> tuple[str, dict[str, str]]:
    """The newest one, which is the last: a history may hold more."""
    found = _DIRECTIVE.findall(body)
    kind, options = found[-1] if found else (b"text", b"")
    return kind.decode(), dict(option.split("=", 1) for option in options.decode().split())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def main() -> None:
    for size in streams.FINALS:
        streams.image_turn(0, size)
    server = await asyncio.start_server(Provider().serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
