"""The verbs of every object storage.

Each storage is a module of `app.storage` with `open_store(settings) -> Store`, which reaches no server and raises
SettingsError in one sentence.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from app import EaselError


class StorageError(EaselError):
    """The storage did not do what it was asked; messages carry neither keys of an account nor signatures."""


class StorageUnavailable(StorageError):
    """Unreachable, too slow, misconfigured or refusing: the same call may succeed later."""


class ObjectMissing(StorageError):
    """The storage answered, and has no object at this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no object at {key}.")
        self.key = key


@dataclass(frozen=True, slots=True)
class StoredObject:
    key: str
    size_bytes: int
    modified_at: datetime  # aware


class Store(Protocol):
    """One private bucket. Keys are those of `app.storage.keys`; any other key raises ValueError.

    Every call ends within `app.storage.blocking.CALL_SECONDS`, a file's put later by a second for each MiB, and
    raises no error but StorageError's kinds.
    """

    async def prepare(self, *, create_bucket: bool) -> None:
        """Make sure that the bucket answers; raises StorageUnavailable with the fix in its message."""
        ...

    async def put(self, key: str, data: bytes | Path, *, mime_type: str) -> None:
        """Store or replace the object, whole or not at all; a file is sent piece by piece."""
        ...

    async def get(self, key: str, part: range | None = None) -> bytes:
        """All bytes, or those of a `part` that lies within the object; raises ObjectMissing."""
        ...

    async def size(self, key: str) -> int:
        """In bytes; raises ObjectMissing."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the object and, in a versioned bucket, its older versions; a missing object is no error."""
        ...

    def list(self, prefix: str, *, deleted: bool = False) -> AsyncIterator[StoredObject]:
        """Objects whose key starts with `prefix`; other files in the same bucket are left out.

        With `deleted` also those of which a versioned bucket has nothing but older versions.
        """
        ...

    async def link(
        self, key: str, *, filename: str, mime_type: str, inline: bool, issued_at: datetime, expires_in: int
    ) -> str | None:
        """A GET link to this one object, made without asking whether the object exists.

        It ends `expires_in` seconds after `issued_at`, which may lie in the past; equal arguments give an equal link
        where the store's signature can be dated.
        None where the store cannot sign links; readers then go through the service's own signed content route.
        """
        ...

    async def close(self) -> None: ...
