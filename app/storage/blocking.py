"""Stores over blocking clients: every call runs in a thread, with a deadline."""

import asyncio
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from app import metrics
from app.storage.keys import check_key, is_key
from app.storage.store import ObjectMissing, StorageUnavailable, StoredObject

CALL_SECONDS = 8.0
# Of one attempt; an attempt that ran into one of them is not repeated. urllib3 grants the sending of a whole body
# as long as a connect, so less would cut off large uploads over slow lines.
CONNECT_SECONDS = 4.0
READ_SECONDS = 5.0
# As many as the connections that the HTTP clients of the stores keep open.
THREADS = 10
_PAGE = 1000
# Of a file, which may be an archive of many gigabytes.
SLOWEST_BYTES_PER_SECOND = 1024**2

# What an error says that the store failed to do -> the verb.
_VERBS = {
    "open the bucket": "prepare",
    "store an object": "put",
    "read an object": "get",
    "look at an object": "size",
    "delete an object": "delete",
    "list objects": "list",
    "sign a link": "link",
}

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    def __init__(self, name: str) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix=f"storage-{name}")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result, or StorageUnavailable after CALL_SECONDS, time spent waiting for a thread included."""
        return await self.run_within(CALL_SECONDS, call, *args, **kwargs)

    async def run_within(self, seconds: float, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        work = functools.partial(call, *args, **kwargs)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError:
            message = f"The object storage ({self._name}) did not answer within {seconds:.0f} seconds."
            raise StorageUnavailable(message) from None

    def close(self) -> None:
        """Without waiting: a thread that hangs in a dead connection ends with its socket's timeout."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class BlockingStore(ABC):
    """The verbs of Store over blocking ones, which a subclass writes: those that begin with an underscore.

    They run in threads, get checked keys and may raise what their client raises: `_translated` makes it ours.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads = Threads(name)

    async def prepare(self, *, create_bucket: bool) -> None:
        await self._call("open the bucket", self._prepare, create_bucket)

    async def put(self, key: str, data: bytes | Path, *, mime_type: str) -> None:
        seconds = CALL_SECONDS
        if isinstance(data, Path):
            seconds += (await asyncio.to_thread(data.stat)).st_size / SLOWEST_BYTES_PER_SECOND
        await self._call_within(seconds, "store an object", self._put, check_key(key), data, mime_type)

    async def get(self, key: str, part: range | None = None) -> bytes:
        return await self._call("read an object", self._get, check_key(key), part)

    async def size(self, key: str) -> int:
        return await self._call("look at an object", self._size, check_key(key))

    async def delete(self, key: str) -> None:
        await self._call("delete an object", self._delete, check_key(key))

    async def list(self, prefix: str, *, deleted: bool = False) -> AsyncIterator[StoredObject]:
        objects, before = (self._list_versions if deleted else self._list)(prefix), ""
        while page := await self._call("list objects", _next_page, objects):
            for item in page:
                if is_key(item.key) and item.key != before:
                    before = item.key
                    yield item

    async def link(
        self, key: str, *, filename: str, mime_type: str, inline: bool, issued_at: datetime, expires_in: int
    ) -> str | None:
        """None: a store that can sign links overrides this."""
        check_key(key)
        return None

    async def close(self) -> None:
        self._threads.close()

    async def _call(self, action: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._call_within(CALL_SECONDS, action, call, *args, **kwargs)

    async def _call_within(
        self, seconds: float, action: str, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def translated() -> T:
            with self._translated(action):
                return call(*args, **kwargs)

        with metrics.storage_call(_VERBS[action], answer=ObjectMissing):
            return await self._threads.run_within(seconds, translated)

    @abstractmethod
    def _prepare(self, create_bucket: bool) -> None: ...

    @abstractmethod
    def _put(self, key: str, data: bytes | Path, mime_type: str) -> None: ...

    @abstractmethod
    def _get(self, key: str, part: range | None) -> bytes:
        """Raises ObjectMissing."""
        ...

    @abstractmethod
    def _size(self, key: str) -> int:
        """Raises ObjectMissing."""
        ...

    @abstractmethod
    def _delete(self, key: str) -> None: ...

    @abstractmethod
    def _list(self, prefix: str) -> Iterator[StoredObject]:
        """Ordered by key; read in pages, each in a thread. Keys that are not ours are filtered out afterwards."""
        ...

    def _list_versions(self, prefix: str) -> Iterator[StoredObject]:
        """The same for every version; a store that has versions overrides it."""
        return self._list(prefix)

    @contextmanager
    def _translated(self, action: str) -> Generator[None]:
        """Turns the client's errors into StorageError's kinds, without their texts: those may quote requests."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StorageUnavailable(f"The object storage ({self._name}) failed to {action}: {reason}.") from error


def _next_page(objects: Iterator[StoredObject]) -> Sequence[StoredObject]:
    return tuple(itertools.islice(objects, _PAGE))
