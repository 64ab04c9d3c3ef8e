"""Objects in this process or, with a directory, in files that all processes of this machine share."""

import contextlib
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from app.storage.keys import check_key, is_key
from app.storage.store import ObjectMissing, StorageUnavailable, StoredObject
from app.storage.threads import Threads

DRAFTS = "drafts"


class MemoryStore:
    def __init__(self, directory: Path | None = None) -> None:
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._files = _Files(directory) if directory else None
        self._threads = Threads("files")

    async def prepare(self, *, create_bucket: bool) -> None:
        """Makes the directory in any case: it is a part of this service's own data."""
        if self._files:
            await self._threads.run(self._files.prepare)

    async def put(self, key: str, data: bytes | Path, *, mime_type: str) -> None:
        check_key(key)
        if self._files:
            await self._threads.run(self._files.put, key, data)
        else:
            whole = await self._threads.run(data.read_bytes) if isinstance(data, Path) else bytes(data)
            self._objects[key] = (whole, datetime.now(UTC))

    async def get(self, key: str) -> bytes:
        check_key(key)
        if self._files:
            return await self._threads.run(self._files.get, key)
        try:
            return self._objects[key][0]
        except KeyError:
            raise ObjectMissing(key) from None

    async def delete(self, key: str) -> None:
        check_key(key)
        if self._files:
            await self._threads.run(self._files.delete, key)
        else:
            self._objects.pop(key, None)

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        if self._files:
            found = await self._threads.run(self._files.list, prefix)
        else:
            found = [
                StoredObject(key, len(data), modified_at)
                for key, (data, modified_at) in sorted(self._objects.items())
                if key.startswith(prefix)
            ]
        for item in found:
            yield item

    async def link(self, key: str, *, filename: str, mime_type: str, inline: bool, expires_in: int) -> str | None:
        check_key(key)
        return None

    async def close(self) -> None:
        self._threads.close()


class _Files:
    """A key is the file's path below the directory; only `app.storage.keys` makes keys, so none leads out of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._drafts = directory / DRAFTS

    def prepare(self) -> None:
        try:
            self._drafts.mkdir(parents=True, exist_ok=True)
            self._directory.chmod(0o700)
        except OSError as error:
            raise StorageUnavailable(
                f"{self._directory} cannot be made ({error.strerror}): set DATA_DIR to a writable directory."
            ) from error

    def put(self, key: str, data: bytes | Path) -> None:
        path = self._directory / key
        draft = self._drafts / uuid.uuid4().hex
        self.prepare()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                shutil.copyfile(data, draft)
            else:
                draft.write_bytes(data)
            draft.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise _unavailable("write", error) from error

    def get(self, key: str) -> bytes:
        try:
            return (self._directory / key).read_bytes()
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        except OSError as error:
            raise _unavailable("read", error) from error

    def delete(self, key: str) -> None:
        try:
            (self._directory / key).unlink(missing_ok=True)
        except OSError as error:
            raise _unavailable("delete", error) from error

    def list(self, prefix: str) -> list[StoredObject]:
        found: list[StoredObject] = []
        folder = prefix.rpartition("/")[0] if prefix.startswith("t/") else "t"
        for root, _, names in os.walk(self._directory / folder):
            for path in (Path(root, name) for name in names):
                key = path.relative_to(self._directory).as_posix()
                if is_key(key) and key.startswith(prefix):
                    found.extend(_describe(key, path))
        return sorted(found, key=lambda item: item.key)


def _describe(key: str, path: Path) -> list[StoredObject]:
    try:
        facts = path.stat()
    except FileNotFoundError:  # deleted since the walk saw it
        return []
    return [StoredObject(key, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))]


def _unavailable(verb: str, error: OSError) -> StorageUnavailable:
    return StorageUnavailable(f"The objects directory refused to {verb} an object: {error.strerror}.")
