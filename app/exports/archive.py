"""The archive: rows of one moment as JSON lines, every stored original, and a manifest of both.

Nothing in it is held in memory as a whole: rows and objects pass in pieces, lists of them lie in files without a name.
"""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from pydantic_core import to_json
from sqlalchemy import func, select

from app.attachments.models import AttachmentStatus
from app.db import Database, now
from app.exports.models import Export
from app.exports.rows import Row, batches, selected
from app.identity.models import Tenant
from app.storage.store import ObjectMissing, StorageUnavailable, Store

FORMAT = "easel-export/1"
# At most so much of so many objects is in memory; a smaller object is read at once.
PART_BYTES = 2 * 1024**2
AHEAD = 4
# One call of a hundred thousand that fails is no reason to begin anew.
PAUSES = (0.5, 3.0)
_LIST_BYTES = 1024**2
_FILE_MODE = 0o600


@dataclass(frozen=True)
class Original:
    """A stored object, and its place in the archive."""

    path: str
    key: str
    size_bytes: int


class Member:
    """One file of the zip, written in pieces; its methods block. `listed` gets a line about it at its end."""

    def __init__(self, path: str, written: IO[bytes], listed: IO[bytes]) -> None:
        self._path = path
        self._written = written
        self._listed = listed
        self._size = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._written.write(data)
        self._size += len(data)
        self._hash.update(data)

    def write_rows(self, rows: Sequence[Row]) -> None:
        self.write(b"".join(to_json(row) + b"\n" for row in rows))

    def end(self) -> None:
        self._written.close()
        line = {"path": self._path, "sha256": self._hash.hexdigest(), "size_bytes": self._size}
        self._listed.write(to_json(line) + b"\n")


class Writer:
    """The zip, one member after the other, all of one time."""

    def __init__(self, file: IO[bytes], listed: IO[bytes]) -> None:
        self._zip = ZipFile(file, "w")
        self._listed = listed
        self._time = now().timetuple()[:6]

    def begin(self, path: str, *, compressed: bool) -> Member:
        info = ZipInfo(path, self._time)
        info.compress_type = ZIP_DEFLATED if compressed else ZIP_STORED
        info.external_attr = _FILE_MODE << 16
        return Member(path, self._zip.open(info, "w", force_zip64=True), self._listed)

    def close(self) -> None:
        self._zip.close()

    def abandon(self) -> None:
        """Without this the zip would write its end, into a closed file, as it is collected."""
        self._zip.fp = None


async def write(database: Database, store: Store, export: Export, file: IO[bytes], directory: Path) -> None:
    """Into `file`, with further files in `directory`. Raises StorageError, OSError and what the database raises."""
    with ExitStack() as stack:
        originals, listed, missing = (stack.enter_context(TemporaryFile(dir=directory)) for _ in range(3))
        writer = Writer(file, listed)
        stack.callback(writer.abandon)
        facts = await _write_rows(database, export, writer, originals)
        facts["counts"]["objects"] = await _write_originals(store, writer, originals, missing)
        await asyncio.to_thread(_write_manifest, writer, facts, listed, missing)
        await asyncio.to_thread(writer.close)
        file.flush()


async def _write_rows(database: Database, export: Export, writer: Writer, originals: IO[bytes]) -> dict[str, Any]:
    """In one transaction, which sees one moment and is over before objects are read; returns facts for the manifest."""
    counts: dict[str, int] = {}
    async with database.tenant(export.tenant_id) as session:
        await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        tenant = (await session.execute(select(Tenant.id, Tenant.name, func.now().label("moment")))).one()
        for name, statement in selected(export).items():
            counts[name] = 0
            member = writer.begin(f"{name}.jsonl", compressed=True)
            async for rows in batches(session, statement):
                if name == "attachments":
                    originals.writelines(_originals_of(rows))
                counts[name] += len(rows)
                await asyncio.to_thread(member.write_rows, rows)
            await asyncio.to_thread(member.end)
    return {
        "format": FORMAT,
        "scope": export.scope,
        "tenant": {"id": tenant.id, "name": tenant.name},
        "created_at": tenant.moment,
        "counts": counts,
    }


def _originals_of(rows: Sequence[Row]) -> Iterator[bytes]:
    """A line for each stored one, whose row gets its path in place of its key."""
    for row in rows:
        key = row.pop("storage_key")
        stored = row["status"] == AttachmentStatus.STORED
        row["path"] = f"objects/{row['id']}{Path(key).suffix}" if stored else None
        if stored:
            yield to_json([row["path"], key, row["size_bytes"]]) + b"\n"


async def _write_originals(store: Store, writer: Writer, originals: IO[bytes], missing: IO[bytes]) -> int:
    """How many; those that were deleted since are named in `missing`."""
    count = 0
    async with aclosing(_read_ahead(store, _listed(originals))) as found:
        async for original, first in found:
            if first is None:
                missing.write(to_json(original.path) + b"\n")
                continue
            member = writer.begin(original.path, compressed=False)
            await asyncio.to_thread(member.write, first)
            for start in range(PART_BYTES, original.size_bytes, PART_BYTES):
                part = range(start, min(start + PART_BYTES, original.size_bytes))
                # Were it deleted now, the attempt would fail, and the next one not know it any more.
                await asyncio.to_thread(member.write, await _read(store, original.key, part))
            await asyncio.to_thread(member.end)
            count += 1
    return count


def _listed(originals: IO[bytes]) -> Iterator[Original]:
    originals.seek(0)
    for line in originals:
        yield Original(*json.loads(line))


async def _read_ahead(store: Store, originals: Iterator[Original]) -> AsyncGenerator[tuple[Original, bytes | None]]:
    """Each with its first part, or None where it is gone; those of a few are read while one is written."""
    reading: deque[tuple[Original, asyncio.Task[bytes | None]]] = deque()
    try:
        for original in originals:
            reading.append((original, asyncio.create_task(_read_first(store, original))))
            if len(reading) >= AHEAD:
                yield reading[0][0], await reading[0][1]
                reading.popleft()
        while reading:
            yield reading[0][0], await reading[0][1]
            reading.popleft()
    finally:
        for _, task in reading:
            task.cancel()
        await asyncio.gather(*(task for _, task in reading), return_exceptions=True)


async def _read_first(store: Store, original: Original) -> bytes | None:
    try:
        return await _read(store, original.key, range(PART_BYTES) if original.size_bytes > PART_BYTES else None)
    except ObjectMissing:
        return None


async def _read(store: Store, key: str, part: range | None) -> bytes:
    for pause in PAUSES:
        with suppress(StorageUnavailable):
            return await store.get(key, part)
        await asyncio.sleep(pause)
    return await store.get(key, part)


def _write_manifest(writer: Writer, facts: dict[str, Any], listed: IO[bytes], missing: IO[bytes]) -> None:
    """The last member, which does not name itself."""
    listed.seek(0)
    missing.seek(0)
    member = writer.begin("manifest.json", compressed=True)
    member.write(to_json(facts)[:-1])
    for name, lines in (("files", listed), ("missing", missing)):
        member.write(f', "{name}": [\n'.encode())
        before = b""
        while part := lines.read(_LIST_BYTES) + lines.readline():
            member.write(before + part.rstrip(b"\n").replace(b"\n", b",\n"))
            before = b",\n"
        member.write(b"\n]")
    member.write(b"}\n")
    member.end()
