"""Images on their way to the provider: in the request while they are few, as uploaded files beyond that."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pybase64

from app.attachments.models import Attachment
from app.images import copies
from app.images.thumbnails import make_thumbnails
from app.storage.store import Store

# The bytes that one request carries; the rest is uploaded before, so that no request exceeds the provider's limit.
INLINE_BYTES = 8 * 1024 * 1024
# Smaller images are sent as they are.
SMALL_BYTES = 256 * 1024

Convert = Callable[[bytes], Awaitable[bytes]]
Upload = Callable[[str, bytes, str], Awaitable[str]]


class ImageInputs:
    """Sends stored images for one run, each once. Methods raise StorageError and ProviderError.

    `reduced`, for a request that was refused as too large: all images are files, those after the first thumbnails.
    """

    def __init__(self, store: Store, upload: Upload, *, reduced: bool = False) -> None:
        self._store = store
        self._upload = upload
        self._reduced = reduced
        self._room = 0 if reduced else INLINE_BYTES
        self._sent: dict[tuple[str, bool], dict[str, str]] = {}

    async def content_parts(self, rows: Sequence[Attachment]) -> list[dict[str, Any]]:
        """Content parts of a message, in the order given."""
        if self._reduced:
            return [
                *[_image_part(await self.source(row)) for row in rows[:1]],
                *[await self.thumbnail(row) for row in rows[1:]],
            ]
        return [_image_part(await self.source(row)) for row in rows]

    async def thumbnail(self, row: Attachment) -> dict[str, Any]:
        """A content part with a copy at most 1024 pixels wide: to be looked at, not to be edited finely."""
        if row.variants:
            data, mime_type = await self._store.get(str(row.variants[-1]["storage_key"])), copies.MIME_TYPE
        else:
            data, mime_type = await self._store.get(row.storage_key), row.mime_type
            # Images narrower than 256 px have no thumbnails.
            if len(data) > SMALL_BYTES and (smaller := (await make_thumbnails(data)).images):
                data, mime_type = smaller[-1].data, copies.MIME_TYPE
        return _image_part(
            await self._send(row.filename, data, mime_type) if self._reduced else await _data_url(data, mime_type)
        )

    async def source(self, row: Attachment, convert: Convert | None = None) -> dict[str, str]:
        """`image_url` with the bytes, or `file_id`."""
        # An image may be its own mask, and is then sent in both forms.
        key = row.storage_key, convert is not None
        if key not in self._sent:
            data, mime_type = await self._store.get(row.storage_key), row.mime_type
            if convert is not None:
                data, mime_type = await convert(data), "image/png"
            self._sent[key] = await self._send(row.filename, data, mime_type)
        return self._sent[key]

    async def _send(self, filename: str, data: bytes, mime_type: str) -> dict[str, str]:
        if len(data) > self._room:
            return {"file_id": await self._upload(filename, data, mime_type)}
        self._room -= len(data)
        return await _data_url(data, mime_type)


def _image_part(source: dict[str, str]) -> dict[str, Any]:
    return {"type": "input_image", "detail": "auto", **source}


async def _data_url(data: bytes, mime_type: str) -> dict[str, str]:
    text = await asyncio.to_thread(pybase64.b64encode_as_string, data)
    return {"image_url": f"data:{mime_type};base64,{text}"}
