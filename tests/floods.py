"""Floods of nobody's requests, from a process of its own: `python -m tests.floods URL EMAIL PASSWORD SECONDS NAME...`.

It prints a line as it begins, and at the end as JSON how many answers of each status there were and how many bytes the
longest had. Its low priority leaves the processor to the service, and to who measures that.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

HEAD_BYTES = 100 * 1024 * 1024
FIELDS = 100_000
PIECE = b"a" * 65536
SLOW_HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: "
SLOW_BODY = b"POST /v1/signup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"


@dataclass
class Flood:
    url: str
    password: str
    until: float
    statuses: Counter[str] = field(default_factory=Counter[str])
    longest: int = 0

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def count(self, answer: bytes) -> None:
        """An answer as it came over a socket; nothing where the connection was closed without one."""
        self.statuses[answer[9:12].decode() or "none"] += 1
        self.longest = max(self.longest, len(answer))

    def count_response(self, response: httpx.Response) -> None:
        head = sum(len(name) + len(value) + 4 for name, value in response.headers.raw)
        self.statuses[str(response.status_code)] += 1
        self.longest = max(self.longest, head + len(response.content))


async def sign_in_repeatedly(flood: Flood, client: httpx.AsyncClient, path: str) -> None:
    """At least once; who is refused waits as long as it is told, as a browser's script would."""
    asked = False
    while flood.goes_on or not asked:
        asked = True
        # An address that is unknown takes as long; one that is known would soon be guessed too often.
        body = {"email": f"{time.monotonic_ns()}@example.com", "password": flood.password}
        if path == "/v1/signup":
            body["tenant_name"] = "New"
        response = await client.post(path, json=body)
        flood.count_response(response)
        if response.status_code == 429:
            problem = response.json()
            told = (problem["code"], problem["limit"], problem["scope"], problem["allowed"])
            assert told == ("limit_exceeded", "sign_ins_at_once", "process", 20)
            await asyncio.sleep(int(response.headers["Retry-After"]))


async def sixty(flood: Flood, path: str) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=flood.url, timeout=60, limits=limits, verify=False) as client:  # noqa: S501
        await asyncio.gather(*(sign_in_repeatedly(flood, client, path) for _ in range(60)))


async def sign_ins(flood: Flood) -> None:
    await sixty(flood, "/v1/tokens")


async def sign_ups(flood: Flood) -> None:
    await sixty(flood, "/v1/signup")


async def slow_sockets(flood: Flood) -> None:
    """200 of them, half of which have sent a head; each sends a byte a second."""
    await asyncio.gather(*(_repeat(flood, _slow_socket, SLOW_BODY if n % 2 else SLOW_HEAD) for n in range(200)))


async def large_heads(flood: Flood) -> None:
    await asyncio.gather(*(_repeat(flood, _large_head, b"GET /livez HTTP/1.1\r\nX-Large: ") for _ in range(4)))


async def many_fields(flood: Flood) -> None:
    """With no credential, and with one that is made up."""
    body = json.dumps({f"{n:x}": 0 for n in range(FIELDS)}, separators=(",", ":")).encode()
    made_up = {"Authorization": f"Bearer easel_at_{'A' * 43}"}
    requests: list[tuple[str, dict[str, str]]] = [
        ("/v1/signup", {}),
        ("/v1/tokens", {}),
        ("/v1/runs", {}),
        ("/v1/runs", made_up),
    ]

    async def send(path: str, headers: dict[str, str]) -> None:
        async with httpx.AsyncClient(base_url=flood.url, timeout=60, verify=False) as client:  # noqa: S501
            while flood.goes_on:
                with suppress(httpx.TransportError):
                    headers = {**headers, "Content-Type": "application/json"}
                    flood.count_response(await client.post(path, content=body, headers=headers))

    await asyncio.gather(*(send(path, headers) for path, headers in requests))


Send = Callable[[Flood, asyncio.StreamWriter], Awaitable[None]]


async def _repeat(flood: Flood, send: Send, begin: bytes) -> None:
    host, _, port = flood.url.removeprefix("http://").partition(":")
    while flood.goes_on:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(begin)
        sending = asyncio.ensure_future(send(flood, writer))
        answer = b""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(flood.until - time.monotonic()):
                while data := await reader.read(65536):
                    answer += data
        sending.cancel()
        with suppress(OSError, asyncio.CancelledError):
            await sending
        writer.transport.abort()
        if flood.goes_on:
            flood.count(answer)


async def _slow_socket(flood: Flood, writer: asyncio.StreamWriter) -> None:
    while flood.goes_on:
        await asyncio.sleep(1)
        writer.write(b"a")


async def _large_head(flood: Flood, writer: asyncio.StreamWriter) -> None:
    for _ in range(HEAD_BYTES // len(PIECE)):
        writer.write(PIECE)
        await writer.drain()


FLOODS = {flood.__name__: flood for flood in (sign_ins, sign_ups, slow_sockets, large_heads, many_fields)}


async def main(url: str, password: str, seconds: str, *names: str) -> None:
    flood = Flood(url, password, time.monotonic() + float(seconds))
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    await asyncio.gather(*(FLOODS[name](flood) for name in names))
    sys.stdout.write(json.dumps({"statuses": flood.statuses, "longest": flood.longest}))


if __name__ == "__main__":
    os.nice(10)
    asyncio.run(main(*sys.argv[1:]))
