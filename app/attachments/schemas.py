"""Attachments as their readers see them."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.attachments.file_tokens import Grant
from app.attachments.links import Links
from app.attachments.models import Attachment, AttachmentError, AttachmentKind, AttachmentStatus
from app.images import thumbnails
from app.paging import Page

ROWS_AT_ONCE = 10
# When a link that was not made yet expires: long ago.
UNLINKED = datetime.fromtimestamp(0, UTC)


class VariantView(BaseModel):
    """A smaller copy of the image; `url` as the attachment's own."""

    width: int
    height: int
    size_bytes: int
    mime_type: str
    url: str
    url_expires_at: datetime


class AttachmentView(BaseModel):
    """`url` needs no Authorization header and works until `url_expires_at`; both are null until the object is stored.

    `width` and `height` are pixels, `sha256` is hex. `variants` (smallest first) and `blurhash` follow soon after the
    image; an image that has none stays as it is. In the event log `url` is the object's storage key, as links expire.
    """

    model_config = ConfigDict(from_attributes=True)

    object_id: UUID
    kind: AttachmentKind
    status: AttachmentStatus
    filename: str
    mime_type: str
    size_bytes: int
    width: int | None
    height: int | None
    sha256: str
    tool_call_id: str | None
    run_id: UUID | None
    message_id: UUID | None
    conversation_id: UUID | None
    user_id: UUID
    agent_key: str | None
    revised_prompt: str | None
    options: dict[str, Any]
    parent_object_id: UUID | None
    error: AttachmentError | None
    blurhash: str | None
    created_at: datetime
    url: str | None
    url_expires_at: datetime | None
    variants: list[VariantView]

    @classmethod
    def of(cls, row: Attachment) -> Self:
        """Without links yet: storage keys stand in their place."""
        stored = row.status == AttachmentStatus.STORED
        fields = {name: getattr(row, name) for name in cls.model_fields.keys() - _COMPUTED}
        variants = [
            VariantView(
                **{name: value for name, value in variant.items() if name != "storage_key"},
                mime_type=thumbnails.MIME_TYPE,
                url=variant["storage_key"],
                url_expires_at=UNLINKED,
            )
            for variant in (stored and row.variants) or ()
        ]
        return cls(
            **fields,
            object_id=row.id,
            url=row.storage_key if stored else None,
            url_expires_at=UNLINKED if stored else None,
            variants=variants,
        )

    async def with_links(self, links: Links) -> Self:
        """The same with links for one reader in place of the storage keys."""
        if self.url is None:
            return self
        stem = self.filename.rpartition(".")[0]
        original, *smaller = await links.to(
            Grant(self.url, self.filename, self.mime_type),
            *(Grant(one.url, f"{stem}-{one.width}.webp", one.mime_type) for one in self.variants),
        )
        variants = [
            one.model_copy(update={"url": link.url, "url_expires_at": link.expires_at})
            for one, link in zip(self.variants, smaller, strict=True)
        ]
        return self.model_copy(
            update={"url": original.url, "url_expires_at": original.expires_at, "variants": variants}
        )


class AttachmentPage(Page[AttachmentView]):
    pass


_COMPUTED = {"object_id", "url", "url_expires_at", "variants"}


async def views(rows: Sequence[Attachment], links: Links) -> list[AttachmentView]:
    """With links, in batches: links that need a request are made at once, and a long list never blocks the loop."""
    found: list[AttachmentView] = []
    for batch in (rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)):
        found += await asyncio.gather(*(AttachmentView.of(row).with_links(links) for row in batch))
    return found
