"""A proxy that counts the HTTP requests that pass, whichever client sends them."""

import asyncio
import re
import threading
from collections import Counter
from contextlib import suppress
from typing import Self

from tests import timeouts
from tests.servers import free_port

_REQUEST = re.compile(rb"(?:^|\n|\r|[^A-Z])(GET|HEAD|PUT|POST|DELETE) (/[^ \r\n]*) HTTP/1\.1\r\n")


class CountingProxy:
    """On loopback, in a thread of its own; `seen` are methods and paths."""

    def __init__(self, target: str) -> None:
        """`target` is host:port."""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self.seen: list[tuple[str, str]] = []
        self.endpoint = f"127.0.0.1:{free_port()}"
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def count(self, part: str) -> Counter[str]:
        """By method, of the paths that hold `part`."""
        return Counter(method for method, path in list(self.seen) if part in path)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(timeouts.SERVER_START):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeouts.STOP)
        self._loop.close()

    async def _serve(self) -> None:
        host, _, port = self.endpoint.rpartition(":")
        server = await asyncio.start_server(self._connect, host, int(port))
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port)
        with suppress(ConnectionError):
            await asyncio.gather(self._pump(reader, back, count=True), self._pump(there, writer, count=False))
        for one in (back, writer):
            one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        while data := await reader.read(1 << 16):
            if count:
                self.seen += [(method.decode(), path.decode()) for method, path in _REQUEST.findall(data)]
            writer.write(data)
            await writer.drain()
        writer.close()
