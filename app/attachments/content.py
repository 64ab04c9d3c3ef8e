"""The bytes of images and archives: by id for users who may see them, and behind a signed link."""

import hashlib
import re
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from fastapi import Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from app.attachments import service
from app.attachments.file_tokens import ARCHIVE_TYPE, SERVED_TYPES, UNKNOWN_TYPE, Grant, verify
from app.attachments.links import CurrentStore, ReaderLinks
from app.attachments.models import AttachmentStatus
from app.db import CurrentDatabase
from app.error_codes import ErrorCode
from app.errors import AppError, Conflict, NotFound, Unavailable, id_of
from app.identity.actor import CurrentSettings, may_apart
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.openapi import Json, Responses, Router, problems, sends
from app.storage.keys import content_disposition
from app.storage.store import ObjectMissing, StorageError, Store

router = Router(prefix="/v1", tags=["attachments"])

# Whatever the bytes hold, a browser that opens them runs nothing and guesses no other type.
GUARDS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Referrer-Policy": "no-referrer",
}
UNCACHED = "private, no-store"

_BYTES: Json = {"content": {mime_type: {} for mime_type in sorted(SERVED_TYPES | {UNKNOWN_TYPE})}}
_HEADERS = ("Accept-Ranges", "Cache-Control", "Content-Disposition", "ETag")
_CONTENT: Responses = {
    200: {"description": "The bytes.", **_BYTES, **sends(*_HEADERS)},
    206: {"description": "The one range that `Range` names.", **_BYTES, **sends(*_HEADERS, "Content-Range")},
    304: {"description": "`If-None-Match` names these very bytes.", **sends(*_HEADERS)},
    **problems(ErrorCode.RANGE_NOT_SATISFIABLE),
}
_REDIRECT: Responses = {
    307: {"description": "A fresh link of the store.", **sends("Location", "Cache-Control")},
    **problems(ErrorCode.ATTACHMENT_NOT_STORED),
}
# Of an archive, which may have gigabytes: so much of it is in memory.
PIECE_BYTES = 4 * 1024**2
# Longer numbers exceed any size.
_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


class RangeNotSatisfiable(AppError):
    title = "Range not satisfiable"
    code = ErrorCode.RANGE_NOT_SATISFIABLE

    def __init__(self, size: int) -> None:
        headers = {"Content-Range": f"bytes */{size}"}
        super().__init__(f"There are {size} bytes; request a range within them.", headers=headers)


@router.head("/attachments/{object_id}/content", response_class=Response, include_in_schema=False)
@router.get("/attachments/{object_id}/content", response_class=Response, responses=_CONTENT | _REDIRECT)
async def get_content(
    request: Request,
    object_id: Annotated[UUID, id_of("attachment")],
    actor: Annotated[Actor, may_apart(Permission.READ_ATTACHMENTS)],
    database: CurrentDatabase,
    links: ReaderLinks,
) -> Response:
    """Get an attachment's bytes.

    A redirect to a fresh link of the store, or the bytes where the store makes no links. `Range`, `If-Range` and
    `If-None-Match` are understood, and `HEAD`.
    """
    # Its own transaction: no connection is held while the store answers.
    async with database.tenant(actor.tenant_id) as session:
        row = await service.get(session, actor, object_id)
    if row.status != AttachmentStatus.STORED:
        raise Conflict(
            "This image is not stored; its `status` and `error` say why.", code=ErrorCode.ATTACHMENT_NOT_STORED
        )
    grant = Grant(row.storage_key, row.filename, row.mime_type)
    headers = _headers(grant, etag=row.sha256 or "", cache_control=UNCACHED)
    if request.method == "HEAD":
        # A store's link is signed for GET alone, and the row has all that HEAD needs.
        length = {"Content-Length": str(row.size_bytes or 0)}
        return Response(headers=headers | length, media_type=grant.content_type)
    if link := await links.of_store(grant):
        return RedirectResponse(link.url, 307, {"Cache-Control": "no-store"})
    return await _answer(request, links.store, grant, headers, size=row.size_bytes)


@router.head("/files/{token}", response_class=Response, include_in_schema=False)
@router.get("/files/{token}", response_class=Response, responses=_CONTENT)
async def get_file(
    request: Request, token: str, settings: CurrentSettings, store: CurrentStore, database: CurrentDatabase
) -> Response:
    """Get the bytes that a link names.

    The links in `url` lead here where the store makes none. The token is the permission, and ends with the link.
    `Range`, `If-Range` and `If-None-Match` are understood, and `HEAD`.
    """
    grant = verify(settings, token, database.clock.now())
    # An object never changes under its key.
    etag = hashlib.sha256(grant.key.encode()).hexdigest()
    cache_control = f"private, max-age={settings.link_ttl_seconds}"
    return await _answer(request, store, grant, _headers(grant, etag=etag, cache_control=cache_control))


def _headers(grant: Grant, *, etag: str, cache_control: str) -> dict[str, str]:
    return {
        **GUARDS,
        "Accept-Ranges": "bytes",
        "Cache-Control": cache_control,
        "Content-Disposition": content_disposition(grant.filename, inline=grant.inline),
        "ETag": f'"{etag}"',
    }


async def _answer(
    request: Request, store: Store, grant: Grant, headers: dict[str, str], *, size: int | None = None
) -> Response:
    """200 with the bytes, 206 with the requested range, or 304 where the reader has them already.

    The store is asked for no more than is sent; for the `size` only where it is needed and not known.
    """
    given, etag = request.headers, headers["ETag"]
    archive = grant.content_type == ARCHIVE_TYPE
    known = {name.strip().removeprefix("W/") for name in given.get("If-None-Match", "").split(",")}
    try:
        if known & {etag, "*"}:
            if size is None:
                await store.size(grant.key)  # it may be deleted
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":
            length = {"Content-Length": str(await store.size(grant.key))}
            return Response(headers=headers | length, media_type=grant.content_type)
        partial = "Range" in given and given.get("If-Range", etag) == etag
        if partial or archive:
            size = await store.size(grant.key) if size is None else size
            wanted = _requested_range(given["Range"], size) if partial else None
            if archive:
                return _streamed(store, grant, headers, wanted, size)
            if wanted is not None:
                data = await store.get(grant.key, wanted)
                return Response(data, 206, headers | _place(wanted, size), grant.content_type)
        return Response(await store.get(grant.key), headers=headers, media_type=grant.content_type)
    except ObjectMissing:
        raise NotFound("file") from None
    except StorageError:
        raise Unavailable("The object storage does not answer; try again in a moment.") from None


def _streamed(store: Store, grant: Grant, headers: dict[str, str], wanted: range | None, size: int) -> Response:
    """Piece by piece, with the length said before."""
    sent = range(size) if wanted is None else wanted
    headers = headers | {"Content-Length": str(len(sent))}
    if wanted is not None:
        headers |= _place(wanted, size)
    status = 200 if wanted is None else 206
    return StreamingResponse(_pieces(store, grant.key, sent), status, headers, grant.content_type)


async def _pieces(store: Store, key: str, sent: range) -> AsyncIterator[bytes]:
    for start in range(sent.start, sent.stop, PIECE_BYTES):
        yield await store.get(key, range(start, min(start + PIECE_BYTES, sent.stop)))


def _place(wanted: range, size: int) -> dict[str, str]:
    return {"Content-Range": f"bytes {wanted.start}-{wanted.stop - 1}/{size}"}


def _requested_range(header: str, size: int) -> range | None:
    """The bytes that a Range header names; None (all bytes) for several ranges and for an invalid header."""
    found = _ONE_RANGE.fullmatch(header.strip())
    if found is None or not any(found.groups()):
        return None
    first, last = (int(number) if number else None for number in found.groups())
    if first is None:
        wanted = range(max(size - (last or 0), 0), size)
    elif last is not None and last < first:
        return None
    else:
        wanted = range(first, size if last is None else min(last + 1, size))
    if not wanted:
        raise RangeNotSatisfiable(size)
    return wanted
