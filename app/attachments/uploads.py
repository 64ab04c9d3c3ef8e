"""Images that users upload: cleaned by a child process, stored, and their rows."""

import asyncio
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import metrics
from app.attachments import variants
from app.attachments.ingest import new_attachment
from app.attachments.models import Attachment, AttachmentKind, AttachmentPurpose, AttachmentStatus
from app.broker import Broker
from app.db import Database, after_commit
from app.error_codes import ErrorCode
from app.errors import AppError, FieldError, Forbidden, Invalid, NotFound, TooLarge, Unavailable
from app.identity.models import Membership
from app.identity.service import Actor
from app.images.cleaning import Cleaned, TooLargeWhenCleaned, clean
from app.images.inspect import UnreadableImage
from app.input_limits import UPLOAD_TYPES
from app.settings import Settings
from app.storage.store import StorageError, Store
from app.usage import counters
from app.usage.limits import Limit, judge

log = logging.getLogger(__name__)

FIELD, PURPOSE = "file", "purpose"
"""The fields of the form."""
STEM_MAX_CHARACTERS = 115
ACCEPTED = "PNG, JPEG and WebP are accepted"
# How much of a file is copied at a time.
PIECE_BYTES = 1024 * 1024
# A killed process leaves its files behind; no upload takes so long.
ABANDONED_SECONDS = 24 * 3600
# An object whose upload seemed to fail may be there all the same.
REMOVE_SECONDS = 1.0

UPLOAD_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {"type": "string", "format": "binary", "description": f"{ACCEPTED}."},
                        PURPOSE: {"type": "string", "enum": [*AttachmentPurpose], "default": AttachmentPurpose.IMAGE},
                    },
                    "additionalProperties": False,
                },
                "encoding": {FIELD: {"contentType": ", ".join(UPLOAD_TYPES)}},
            }
        },
    }
}
"""The form, for OpenAPI: it is read as a stream, which FastAPI cannot declare as a parameter."""


class Upload(NamedTuple):
    """What a form has: the file, the name that the client gave it, and what it is for."""

    file: BinaryIO
    filename: str
    purpose: AttachmentPurpose


class UnsupportedType(AppError):
    title = "Unsupported type"
    code = ErrorCode.UNSUPPORTED_TYPE


async def store_upload(
    database: Database, broker: Broker, store: Store, settings: Settings, actor: Actor, upload: Upload
) -> Attachment:
    """The row of the file's image, stored: type and size come from the bytes, the name from the client's, cleaned.

    Raises Invalid, UnsupportedType, TooLarge, BudgetExceeded, or Unavailable where the store fails: nothing is left
    behind then.
    """
    limit = settings.upload_max_bytes
    async with _temp_dir(settings.data_dir.absolute() / "uploads") as temp_dir:
        source, target = temp_dir / "source", temp_dir / "target"
        await asyncio.to_thread(_copy, upload.file, source)
        cleaned = await _clean(source, target, limit, upload.filename)
        row = _new_row(actor, upload, cleaned)
        async with database.tenant(actor.tenant_id) as session:
            await _require_member(session, actor)
            await admit_bytes(session, actor, cleaned.size_bytes, locks=True)
            session.add(row)
        try:
            await store.put(row.storage_key, target, mime_type=row.mime_type)
        except StorageError as error:
            log.warning("upload.store_failed", extra={"tenant_id": str(actor.tenant_id), "error": str(error)})
            await _remove(database, store, row)
            raise Unavailable("The object storage does not answer; nothing was stored. Send the image again.") from None
    async with database.tenant(actor.tenant_id) as session:
        after_commit(session, partial(variants.request, broker, actor.tenant_id, row.id))
        stored = update(Attachment).where(Attachment.id == row.id).values(status=AttachmentStatus.STORED)
        is_there = await session.scalar(stored.returning(Attachment.id)) is not None
    if not is_there:
        await _remove(database, store, row)
        raise NotFound("attachment")
    row.status = AttachmentStatus.STORED
    metrics.IMAGES_STORED.labels(row.kind).inc()
    return row


async def _require_member(session: AsyncSession, actor: Actor) -> None:
    """Locked until the row is there: who is removed or erased meanwhile leaves nothing behind. Raises Forbidden."""
    member = select(Membership.user_id).where(Membership.user_id == actor.user_id)
    if await session.scalar(member.with_for_update(read=True, key_share=True)) is None:
        raise Forbidden("You are not a member of this tenant any more.")


async def admit_bytes(session: AsyncSession, actor: Actor, size: int, *, locks: bool) -> None:
    """Raise BudgetExceeded where so many more are too many; if it `locks`, nobody else stores any until the commit."""
    plan = await counters.read_plan(session, actor)
    if plan.stored_bytes is None:
        return
    if locks:
        standing = await counters.lock(session, plan, actor.tenant_id, actor.user_id, with_bytes=True)
    else:
        standing = await counters.look(session, plan, actor.tenant_id, actor.user_id)
    judge(standing.states, {Limit.STORED_BYTES: size}, standing.at)


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


def _copy(file: BinaryIO, path: Path) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as target:
        shutil.copyfileobj(file, target, PIECE_BYTES)


async def _clean(source: Path, target: Path, limit: int, given: str) -> Cleaned:
    if not await asyncio.to_thread(_looks_accepted, source):
        message = f"no image of an accepted type: {ACCEPTED}"
        raise UnsupportedType(f"The file is {message}.", errors=[upload_fault(message, given)])
    try:
        return await clean(source, target, max_bytes=limit)
    except TooLargeWhenCleaned as error:
        raise TooLarge(str(error), errors=[upload_fault(f"{error} (UPLOAD_MAX_MB)", given)]) from None
    except UnreadableImage as error:
        raise Invalid(str(error), code=ErrorCode.IMAGE_UNREADABLE, errors=[upload_fault(str(error), given)]) from None


def _looks_accepted(path: Path) -> bool:
    with path.open("rb") as file:
        return _MAGIC.match(file.read(12)) is not None


_MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)


def _new_row(actor: Actor, upload: Upload, cleaned: Cleaned) -> Attachment:
    return new_attachment(
        cleaned,
        kind=AttachmentKind.UPLOAD,
        purpose=upload.purpose,
        tenant_id=actor.tenant_id,
        user_id=actor.user_id,
        stem=clean_stem(upload.filename),
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


def upload_fault(message: str, given: str, field: str = FIELD) -> FieldError:
    return {"field": field, "message": message, "given": repr(given)[:100] if given else ""}
