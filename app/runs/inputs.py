"""Pictures on their way to the provider: as bytes while they are few, as files of the provider's beyond that."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pybase64
from openai import AsyncOpenAI

from app.attachments.models import Attachment
from app.images import thumbnails
from app.storage.store import Store

# What one request carries in itself; the rest is uploaded before, so that no request grows past the provider's bound.
INLINE_BYTES = 8 * 1024 * 1024
# Not worth reducing.
SMALL_BYTES = 256 * 1024
# As long as the provider keeps a response: what follows on it may look at the picture again.
FILE_SECONDS = 30 * 24 * 3600

Convert = Callable[[bytes], Awaitable[bytes]]


class Sender:
    """Sends stored pictures for one run, each once."""

    def __init__(self, store: Store, client: AsyncOpenAI) -> None:
        self._store = store
        self._client = client
        self._room = INLINE_BYTES
        self._sent: dict[tuple[str, bool], dict[str, str]] = {}

    async def parts(self, rows: Sequence[Attachment]) -> list[dict[str, Any]]:
        """Content parts of a message, in the order given; raises StorageError and the client's errors."""
        return [_image(await self.reference(row)) for row in rows]

    async def reduced(self, row: Attachment) -> dict[str, Any]:
        """A content part with a copy of at most 1024 pixels' width: to be looked at, not to be edited finely."""
        if row.variants:
            data, mime_type = await self._store.get(str(row.variants[-1]["storage_key"])), thumbnails.MIME_TYPE
        else:
            data, mime_type = await self._store.get(row.storage_key), row.mime_type
            # A narrow one has no copies.
            if len(data) > SMALL_BYTES and (copies := (await thumbnails.make_copies(data)).copies):
                data, mime_type = copies[-1].data, thumbnails.MIME_TYPE
        return _image(await _data_url(data, mime_type))

    async def reference(self, row: Attachment, convert: Convert | None = None) -> dict[str, str]:
        """`image_url` with the bytes, or `file_id`."""
        # A picture may be its own mask, and then goes in both forms.
        key = row.storage_key, convert is not None
        if key not in self._sent:
            data = await self._store.get(row.storage_key)
            mime_type = row.mime_type
            if convert is not None:
                data, mime_type = await convert(data), "image/png"
            if len(data) <= self._room:
                self._room -= len(data)
                self._sent[key] = await _data_url(data, mime_type)
            else:
                self._sent[key] = await self._upload(row.filename, data, mime_type)
        return self._sent[key]

    async def _upload(self, filename: str, data: bytes, mime_type: str) -> dict[str, str]:
        file = await self._client.files.create(
            file=(filename, data, mime_type),
            purpose="vision",
            expires_after={"anchor": "created_at", "seconds": FILE_SECONDS},
        )
        return {"file_id": file.id}


def _image(reference: dict[str, str]) -> dict[str, Any]:
    return {"type": "input_image", "detail": "auto", **reference}


async def _data_url(data: bytes, mime_type: str) -> dict[str, str]:
    text = await asyncio.to_thread(pybase64.b64encode_as_string, data)
    return {"image_url": f"data:{mime_type};base64,{text}"}
