"""Images that users upload: the form's one file onto disk, cleaned by a child process, into storage, and its row."""

import asyncio
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from sqlalchemy import delete, update

from app.attachments import variants
from app.attachments.ingest import new_attachment
from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.broker import Broker
from app.db import Database, after_commit
from app.errors import AppError, FieldError, Invalid, TooLarge, Unavailable
from app.identity.service import Actor
from app.images import sanitise
from app.images.inspect import UnreadableImage
from app.images.sanitise import Cleaned, TooLargeWhenCleaned
from app.settings import Settings
from app.storage.store import StorageError, Store

log = logging.getLogger(__name__)

FIELD = "file"
STEM_MAX_CHARACTERS = 115
ACCEPTED = "PNG, JPEG and WebP are accepted"
# How much of a form is kept in memory before it is written to disk.
PIECE_BYTES = 1024 * 1024
# A killed process leaves its files behind; no upload takes so long.
ABANDONED_SECONDS = 24 * 3600
# An object whose upload seemed to fail may be there all the same.
REMOVE_SECONDS = 1.0

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary", "description": f"{ACCEPTED}."}},
                    "additionalProperties": False,
                },
                "encoding": {FIELD: {"contentType": "image/png, image/jpeg, image/webp"}},
            }
        },
    }
}
"""The form, for OpenAPI: it is read as a stream, which FastAPI cannot declare as a parameter."""


class UnsupportedType(AppError):
    status = 415
    title = "Unsupported type"
    code = "unsupported_type"


@dataclass(frozen=True)
class Form:
    """A request's body as a stream; iterating raises what ends it early."""

    content_type: str
    chunks: AsyncIterator[bytes]


async def store_upload(
    database: Database, broker: Broker, store: Store, settings: Settings, actor: Actor, form: Form
) -> Attachment:
    """The row of the form's image, stored: type and size come from the bytes, the name from the client, cleaned.

    Raises Invalid, UnsupportedType, TooLarge, or Unavailable where the store fails; then nothing is left behind.
    """
    limit = settings.upload_max_bytes
    async with _temp_dir(settings.data_dir.absolute() / "uploads") as temp_dir:
        source, target = temp_dir / "source", temp_dir / "target"
        given = await _receive(form, source, limit)
        cleaned = await _clean(source, target, limit, given)
        row = _new_row(actor, given, cleaned)
        async with database.tenant(actor.tenant_id) as session:
            session.add(row)
        try:
            await store.put(row.storage_key, target, mime_type=row.mime_type)
        except StorageError as error:
            log.warning("upload.store_failed", extra={"tenant_id": str(actor.tenant_id), "error": str(error)})
            await _remove(database, store, row)
            raise Unavailable("The object storage does not answer; nothing was stored. Send the image again.") from None
    async with database.tenant(actor.tenant_id) as session:
        after_commit(session, partial(variants.request, broker, actor.tenant_id, row.id))
        await session.execute(update(Attachment).where(Attachment.id == row.id).values(status=AttachmentStatus.STORED))
    row.status = AttachmentStatus.STORED
    return row


@asynccontextmanager
async def _temp_dir(directory: Path) -> AsyncGenerator[Path]:
    """A directory of this upload's own, 0700; gone at the end, with what is in it."""
    temp_dir = await asyncio.to_thread(_make_temp_dir, directory)
    try:
        yield temp_dir
    finally:
        await asyncio.to_thread(shutil.rmtree, temp_dir, ignore_errors=True)


def _make_temp_dir(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in directory.iterdir():
        with suppress(FileNotFoundError):  # another upload's, which has just ended
            if left.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=directory))


async def _receive(form: Form, source: Path, limit: int) -> str:
    """The form's one file into `source`; returns the name that the client gave it."""
    kind, options = parse_options_header(form.content_type)
    if kind != b"multipart/form-data":
        message = f"send multipart/form-data with the image in the field {FIELD}"
        raise UnsupportedType(f"Please {message}.", errors=[_fault(message, form.content_type, "content-type")])
    reader = _Reader(limit)
    try:
        parser = MultipartParser(options.get(b"boundary", b""), reader.callbacks())
        async for chunk in form.chunks:
            parser.write(chunk)
            if reader.waiting >= PIECE_BYTES:
                await asyncio.to_thread(_append, source, reader.take_pieces())
    except FormParserError:
        raise _refused("the form cannot be read as multipart/form-data", "") from None
    if not reader.ended:
        raise _refused("the form is cut off: its end is missing", "")
    if reader.size == 0:
        raise _refused(
            f"send an image in this field: {ACCEPTED}" if not reader.found else "the file is empty", reader.name
        )
    await asyncio.to_thread(_append, source, reader.take_pieces())
    return reader.name


def _append(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
        file.write(data)


class _Reader:
    """What the parser's callbacks keep of a form: the file's name, its size so far, its bytes not written to disk."""

    def __init__(self, limit: int) -> None:
        self.name = ""
        self.size = 0
        self.waiting = 0
        self.found = False
        self.ended = False
        self._limit = limit
        self._pieces: list[bytes] = []
        self._header = b""
        self._value = b""
        self._disposition = b""

    def callbacks(self) -> Any:
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data", "end")
        return {f"on_{name}": getattr(self, f"_on_{name}") for name in names}

    def take_pieces(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self.waiting = 0
        return data

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        field = options.get(b"name", b"").decode(errors="replace")
        name = options.get(b"filename", b"").decode(errors="replace")
        if field != FIELD:
            raise _refused(f"the form has one field, {FIELD}; this field is unknown", name, field[:100] or "body")
        if self.found:
            raise _refused("send one image in each request", name)
        self.found = True
        self.name = name

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.size += end - start
        if self.size > self._limit:
            message = f"at most {self._limit} bytes are accepted (UPLOAD_MAX_MB)"
            given = f"{self.name}, more than {self._limit} bytes"
            raise TooLarge(f"The image is too large: {message}.", errors=[_fault(message, given)])
        self._pieces.append(data[start:end])
        self.waiting += end - start

    def _on_end(self) -> None:
        self.ended = True


async def _clean(source: Path, target: Path, limit: int, given: str) -> Cleaned:
    if not await asyncio.to_thread(_looks_accepted, source):
        message = f"the bytes are no image of an accepted type: {ACCEPTED}"
        raise UnsupportedType(f"{FIELD}: {message}.", errors=[_fault(message, given)])
    try:
        return await sanitise.clean(source, target, max_bytes=limit)
    except TooLargeWhenCleaned as error:
        raise TooLarge(str(error), errors=[_fault(f"{error} (UPLOAD_MAX_MB)", given)]) from None
    except UnreadableImage as error:
        raise Invalid(str(error), code="image_unreadable", errors=[_fault(str(error), given)]) from None


def _looks_accepted(path: Path) -> bool:
    with path.open("rb") as file:
        return _MAGIC.match(file.read(12)) is not None


_MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)


def _new_row(actor: Actor, given: str, cleaned: Cleaned) -> Attachment:
    return new_attachment(
        cleaned,
        kind=AttachmentKind.UPLOAD,
        tenant_id=actor.tenant_id,
        user_id=actor.user_id,
        stem=clean_stem(given),
        size_bytes=cleaned.size_bytes,
        sha256=cleaned.sha256,
        options={"mask": cleaned.mask} if cleaned.mask else {},
    )


def clean_stem(given: str) -> str:
    """The name of the file in a client's path, without its extension and without invisible characters."""
    visible = "".join(filter(str.isprintable, given.replace("\\", "/")))
    return PurePosixPath(visible).stem.strip(" .")[:STEM_MAX_CHARACTERS]


async def _remove(database: Database, store: Store, row: Attachment) -> None:
    async with database.tenant(row.tenant_id) as session:
        await session.execute(delete(Attachment).where(Attachment.id == row.id))
    with suppress(StorageError, TimeoutError):
        async with asyncio.timeout(REMOVE_SECONDS):
            await store.delete(row.storage_key)


def _refused(message: str, given: str, field: str = FIELD) -> Invalid:
    return Invalid(f"{field}: {message}.", errors=[_fault(message, given, field)])


def _fault(message: str, given: str, field: str = FIELD) -> FieldError:
    return {"field": field, "message": message, "given": repr(given)[:100] if given else ""}
