"""Objects in this process or, beside the embedded Postgres, in files that all processes of this machine share."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from app.settings import Settings
from app.storage.blocking import BlockingStore
from app.storage.store import ObjectMissing, StorageUnavailable, Store, StoredObject


def open_store(settings: Settings) -> Store:
    # Objects must not outlive their rows, nor rows their objects.
    return MemoryStore() if settings.database_url is not None else FileStore(_directory(settings))


def leftover_temporary_files(settings: Settings, *, before: datetime) -> list[Path]:
    """Files that killed processes were writing."""
    found: list[Path] = []
    folder = _temporary(_directory(settings))
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # completed meanwhile
            if path.stat().st_mtime <= before.timestamp():
                found.append(path)
    return found


def _directory(settings: Settings) -> Path:
    return settings.data_dir / "objects"


def _temporary(directory: Path) -> Path:
    return directory / "tmp"


class MemoryStore(BlockingStore):
    def __init__(self) -> None:
        super().__init__("memory")
        self._objects: dict[str, tuple[bytes, datetime]] = {}

    def _prepare(self, create_bucket: bool) -> None:
        pass

    def _put(self, key: str, data: bytes | Path, mime_type: str) -> None:
        self._objects[key] = (data.read_bytes() if isinstance(data, Path) else bytes(data), datetime.now(UTC))

    def _get(self, key: str, part: range | None) -> bytes:
        try:
            data = self._objects[key][0]
        except KeyError:
            raise ObjectMissing(key) from None
        return data if part is None else data[part.start : part.stop]

    def _size(self, key: str) -> int:
        return len(self._get(key, None))

    def _delete(self, key: str) -> None:
        self._objects.pop(key, None)

    def _list(self, prefix: str) -> Iterator[StoredObject]:
        for key, (data, modified_at) in sorted(self._objects.items()):
            if key.startswith(prefix):
                yield StoredObject(key, len(data), modified_at)


class FileStore(BlockingStore):
    """A key is the file's path below the directory; only `app.storage.keys` makes keys, so none leads out of it."""

    def __init__(self, directory: Path) -> None:
        super().__init__("files")
        self._directory = directory

    def _prepare(self, create_bucket: bool) -> None:
        """Makes the directory in any case: it belongs to this service's own data."""
        try:
            _temporary(self._directory).mkdir(parents=True, exist_ok=True)
            self._directory.chmod(0o700)
        except OSError as error:
            raise StorageUnavailable(
                f"{self._directory} cannot be made ({error.strerror}): set DATA_DIR to a writable directory."
            ) from error

    def _put(self, key: str, data: bytes | Path, mime_type: str) -> None:
        path, temporary = self._directory / key, _temporary(self._directory) / uuid.uuid4().hex
        self._prepare(create_bucket=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path):
                shutil.copyfile(data, temporary)
            else:
                temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _get(self, key: str, part: range | None) -> bytes:
        try:
            with (self._directory / key).open("rb") as file:
                if part is None:
                    return file.read()
                file.seek(part.start)
                return file.read(len(part))
        except FileNotFoundError:
            raise ObjectMissing(key) from None

    def _size(self, key: str) -> int:
        try:
            return (self._directory / key).stat().st_size
        except FileNotFoundError:
            raise ObjectMissing(key) from None

    def _delete(self, key: str) -> None:
        (self._directory / key).unlink(missing_ok=True)

    def _list(self, prefix: str) -> Iterator[StoredObject]:
        folder = prefix.rpartition("/")[0] if prefix.startswith("t/") else "t"
        files = (Path(root, name) for root, _, names in os.walk(self._directory / folder) for name in names)
        for key, path in sorted((path.relative_to(self._directory).as_posix(), path) for path in files):
            if key.startswith(prefix):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    facts = path.stat()
                    yield StoredObject(key, facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))
