"""Attachments as their readers see them."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.attachments.file_tokens import Grant
from app.attachments.links import Links
from app.attachments.models import (
    Attachment,
    AttachmentError,
    AttachmentKind,
    AttachmentPurpose,
    AttachmentStatus,
)
from app.images import copies
from app.images.schemas import StoredOptions
from app.paging import Page
from app.usage.kinds import Basis

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
    """`url` needs no Authorization header and works until `url_expires_at`; it is null until the object is stored.

    `download_url` is the same object as a download. `alt` says in one line what it shows. `width` and `height` are
    pixels, `sha256` is hex; `size_bytes` and `sha256` are null where the image failed, as nothing is stored, and
    `error` says why. `variants` (smallest first) and `blurhash` follow soon after the image; an image that has none
    stays as it is. `cost_usd` is a decimal string: the image's share of what the image model used, null for uploads
    and until its call has ended; where `cost_basis` is `unpriced`, it is the part that has a price, null without one.
    In the event log the object's storage key stands for its links, as these expire.
    """

    model_config = ConfigDict(from_attributes=True)

    object_id: UUID
    kind: AttachmentKind
    purpose: AttachmentPurpose
    status: AttachmentStatus
    filename: str
    alt: str
    mime_type: str
    size_bytes: int | None
    width: int | None
    height: int | None
    sha256: str | None
    tool_call_id: str | None
    run_id: UUID | None
    message_id: UUID | None
    conversation_id: UUID | None
    user_id: UUID
    agent_key: str | None
    revised_prompt: str | None
    options: StoredOptions
    parent_object_id: UUID | None
    error: AttachmentError | None
    blurhash: str | None
    cost_usd: str | None
    cost_basis: Basis | None
    created_at: datetime
    url: str | None
    download_url: str | None
    url_expires_at: datetime | None
    variants: list[VariantView]

    @classmethod
    def of(cls, row: Attachment) -> Self:
        """Without links yet: storage keys stand in their place."""
        stored, failed = row.status == AttachmentStatus.STORED, row.status == AttachmentStatus.FAILED
        variants = [
            VariantView(
                **{name: value for name, value in variant.items() if name != "storage_key"},
                mime_type=copies.MIME_TYPE,
                url=variant["storage_key"],
                url_expires_at=UNLINKED,
            )
            for variant in (stored and row.variants) or ()
        ]
        # The row of a rejected image keeps its hash, by which a resumed run knows it.
        return cls(
            **dict(zip(_COPIED, _copied(row), strict=True)) | (_WITHOUT_BYTES if failed else {}),
            object_id=row.id,
            url=row.storage_key if stored else None,
            download_url=row.storage_key if stored else None,
            url_expires_at=UNLINKED if stored else None,
            variants=variants,
        )

    def grants(self) -> Iterator[tuple["AttachmentView | VariantView", Grant]]:
        """What needs a link in place of its storage key, and what that link allows."""
        if self.url is not None:
            yield self, Grant(self.url, self.filename, self.mime_type)
            yield self, Grant(self.url, self.filename, self.mime_type, download=True)
            stem = self.filename.rpartition(".")[0]
            for one in self.variants:
                yield one, Grant(one.url, f"{stem}-{one.width}.webp", one.mime_type)


class AttachmentPage(Page[AttachmentView]):
    pass


_LINKED = {"object_id", "url", "download_url", "url_expires_at", "variants"}
_COPIED = sorted(AttachmentView.model_fields.keys() - _LINKED)
_copied = attrgetter(*_COPIED)
_WITHOUT_BYTES: dict[str, Any] = {"size_bytes": None, "sha256": None}


async def give_links(views: Iterable[AttachmentView], links: Links) -> None:
    """Put links for one reader in place of the storage keys."""
    granted = [pair for view in views for pair in view.grants()]
    made = await links.to([grant for _, grant in granted])
    for (shown, grant), link in zip(granted, made, strict=True):
        if grant.download and isinstance(shown, AttachmentView):
            shown.download_url = link.url
        else:
            shown.url, shown.url_expires_at = link


async def linked(rows: Iterable[Attachment], links: Links) -> list[AttachmentView]:
    views = [AttachmentView.of(row) for row in rows]
    await give_links(views, links)
    return views
