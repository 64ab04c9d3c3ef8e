"""What stands beside a turn: `python -m tests.bench.turns NAME PROVIDER_URL S3 ACCESS_KEY SECRET_KEY TEXT [AT_ONCE]`.

Prints one line of JSON, each the median of five in seconds: `cpu` of a turn, `first` until its first event, and `gap`,
the third longest time that the loop stood still.
"""

import asyncio
import gc
import hashlib
import io
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast
from urllib.parse import urlsplit

import pybase64
import uvloop
from agents import Agent, RunConfig, Runner
from agents.models.openai_responses import OpenAIResponsesModel
from minio import Minio
from openai import AsyncOpenAI, DefaultAioHttpClient

from app.provider.image_bytes import ImageBytes
from app.provider.wire import IMAGE, WireTapClient

REPEATS = 5
LOOK_SECONDS = 0.001
_VALUES = (b'"partial_image_b64":"', b'"result":"')
_BUCKET = "bench-floor"

Turn = Callable[[str], Awaitable[object]]


class Floor:
    """The least that anything that stores the images must do."""

    def __init__(self, provider_url: str, store: Minio | None) -> None:
        self._place = urlsplit(provider_url)
        self._store = store
        self._threads = ThreadPoolExecutor(2)

    async def __call__(self, text: str) -> None:
        images = await asyncio.get_running_loop().run_in_executor(self._threads, decoded, await self._read(text))
        if self._store is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._put, images[-1])

    async def _read(self, text: str) -> bytearray:
        reader, writer = await asyncio.open_connection(self._place.hostname, self._place.port, limit=1 << 20)
        body = json.dumps({"input": text}).encode()
        writer.write(b"POST /v1/responses HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await reader.readuntil(b"\r\n\r\n")
        whole = bytearray()
        while size := int(await reader.readline(), 16):
            whole += await reader.readexactly(size)
            await reader.readexactly(2)
        writer.close()
        return whole

    def _put(self, data: bytes) -> None:
        if self._store is not None:
            self._store.put_object(_BUCKET, hashlib.sha256(data).hexdigest(), io.BytesIO(data), len(data))


def decoded(whole: bytearray) -> list[bytes]:
    """Each image once: the copy in the last event is not looked at."""
    images: list[bytes] = []
    place = 0
    end = whole.index(b'"response.completed"')
    while (found := _next_value(whole, place, end)) is not None:
        place = whole.index(b'"', found)
        images.append(pybase64.b64decode(memoryview(whole)[found:place], validate=True))
        hashlib.sha256(images[-1]).digest()
    return images


def _next_value(whole: bytearray, place: int, end: int) -> int | None:
    starts = [at + len(value) for value in _VALUES if (at := whole.find(value, place, end)) >= 0]
    return min(starts) if starts else None


def plain_openai(client: AsyncOpenAI) -> Turn:
    async def turn(text: str) -> None:
        async for _ in await client.responses.create(model="gpt-6.1-sol", input=text, stream=True):
            pass

    return turn


def reading(client: AsyncOpenAI) -> Turn:
    """Easel's reading alone: every image decoded and hashed once."""

    async def turn(text: str) -> None:
        hashed: set[int] = set()
        async for event in await client.responses.create(model="gpt-6.1-sol", input=text, stream=True):
            holder = getattr(event, "item", event)
            image = (holder.model_extra or {}).get(IMAGE)
            if image is not None and id(image) not in hashed:
                hashed.add(id(image))
                await asyncio.to_thread(hashlib.sha256, cast(ImageBytes, image).data or b"")

    return turn


def plain_agents(client: AsyncOpenAI) -> Turn:
    agent = Agent[Any](name="plain", model=OpenAIResponsesModel(model="gpt-6.1-sol", openai_client=client))

    async def turn(text: str) -> float:
        """Seconds until the first event."""
        began, first = time.perf_counter(), 0.0
        streamed = Runner.run_streamed(agent, text, run_config=RunConfig(tracing_disabled=True))
        async for _ in streamed.stream_events():
            first = first or time.perf_counter() - began
        return first

    return turn


def _turn(name: str, provider_url: str, store: Minio) -> Turn:
    base_url = f"{provider_url}"
    if name == "floor":
        return Floor(provider_url, store)
    if name == "floor-reading":
        return Floor(provider_url, None)
    if name == "reading":
        # As app/provider/client.py.
        http = DefaultAioHttpClient()
        return reading(WireTapClient(api_key="none", base_url=base_url, max_retries=0, http_client=http))
    client = AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0)
    return plain_agents(client) if name == "agents" else plain_openai(client)


class _Gap:
    """How late a task was that looks all the time: the third longest, as in `tests.waiting`."""

    def __init__(self) -> None:
        self._longest = [0.0] * 3

    @property
    def third_longest(self) -> float:
        return self._longest[0]

    async def look(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(LOOK_SECONDS)
            self._longest = sorted([*self._longest, time.perf_counter() - began - LOOK_SECONDS])[1:]


async def _measure(turn: Turn, text: str, at_once: int) -> dict[str, float]:
    costs: list[float] = []
    gaps: list[float] = []
    firsts: list[float] = []
    await turn(text)
    gc.collect()
    gc.freeze()
    for _ in range(REPEATS):
        began = time.process_time()
        await asyncio.gather(*(turn(text) for _ in range(at_once)))
        costs.append((time.process_time() - began) / at_once)
    for _ in range(REPEATS):
        # Looking costs, so that these turns are others.
        gap = _Gap()
        looking = asyncio.create_task(gap.look())
        await asyncio.gather(*(turn(text) for _ in range(at_once)))
        looking.cancel()
        gaps.append(gap.third_longest)
    for _ in range(REPEATS):
        first = await turn(text)
        firsts.append(first if isinstance(first, float) else 0.0)
    return {name: statistics.median(found) for name, found in (("cpu", costs), ("gap", gaps), ("first", firsts))}


def main() -> None:
    name, provider_url, endpoint, access_key, secret_key, text, *more = sys.argv[1:]
    store = Minio(endpoint, access_key=access_key, secret_key=secret_key, secure=False, region="us-east-1")
    if not store.bucket_exists(_BUCKET):
        store.make_bucket(_BUCKET)
    turn = _turn(name, provider_url, cast(Any, store))
    sys.stdout.write(json.dumps(uvloop.run(_measure(turn, text, int(more[0]) if more else 1))))


if __name__ == "__main__":
    main()
