"""Attachments on the wire, and as they lie in the event log."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.attachments.links import Grant, Links
from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus
from app.images import thumbnails

ROWS_AT_ONCE = 10


class AttachmentFacts(BaseModel):
    """All that is the same for every reader; `width` and `height` in pixels, `sha256` in hex.

    `error` is `{code, detail}` of a failed one.
    """

    model_config = ConfigDict(from_attributes=True)

    object_id: UUID = Field(validation_alias="id")
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
    error: dict[str, Any] | None = None
    blurhash: str | None = None
    created_at: datetime


class VariantView(BaseModel):
    """A smaller copy of the picture; `url` as the attachment's own."""

    width: int
    height: int
    size_bytes: int
    mime_type: str = thumbnails.MIME_TYPE
    url: str
    url_expires_at: datetime


class AttachmentView(AttachmentFacts):
    """`url` needs no Authorization header and works until `url_expires_at`; null until the object is stored.

    `variants`, smallest first, and `blurhash` follow soon after; a picture that has none stays as it is.
    """

    object_id: UUID
    url: str | None
    url_expires_at: datetime | None
    variants: list[VariantView]


def grant_for(row: Attachment) -> Grant:
    return Grant(row.storage_key, row.filename, row.mime_type)


async def view(row: Attachment, links: Links) -> AttachmentView:
    facts = AttachmentFacts.model_validate(row).model_dump()
    return await _linked(facts, row.storage_key, row.variants or [], links)


async def views(rows: Sequence[Attachment], links: Links) -> list[AttachmentView]:
    """In batches: links made by requests are made side by side, and none of many holds up the event loop."""
    found: list[AttachmentView] = []
    for batch in (rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)):
        found += await asyncio.gather(*(view(row, links) for row in batch))
    return found


def log_form(row: Attachment) -> dict[str, Any]:
    """For the event log: the facts and the objects' keys; never a link, which would go stale."""
    facts = AttachmentFacts.model_validate(row).model_dump(mode="json")
    return {**facts, "storage_key": row.storage_key, "variants": row.variants or []}


async def from_log(form: dict[str, Any], links: Links) -> dict[str, Any]:
    """The log's form as its reader sees it: the keys give way to fresh links."""
    facts = {name: value for name, value in form.items() if name not in ("storage_key", "variants")}
    # A worker of the release before this one writes none.
    shown = await _linked(facts, form["storage_key"], form.get("variants", []), links)
    return shown.model_dump(mode="json")


async def _linked(
    facts: dict[str, Any], storage_key: str, variants: list[dict[str, Any]], links: Links
) -> AttachmentView:
    if facts["status"] != AttachmentStatus.STORED:
        return AttachmentView(**facts, url=None, url_expires_at=None, variants=[])
    stem = facts["filename"].rpartition(".")[0]
    grants = [
        Grant(storage_key, facts["filename"], facts["mime_type"]),
        *(Grant(one["storage_key"], f"{stem}-{one['width']}.webp", thumbnails.MIME_TYPE) for one in variants),
    ]
    original, *smaller = await asyncio.gather(*(links.to(grant) for grant in grants))
    return AttachmentView(
        **facts,
        url=original.url,
        url_expires_at=original.expires_at,
        variants=[
            VariantView(**one, url=link.url, url_expires_at=link.expires_at)
            for one, link in zip(variants, smaller, strict=True)
        ],
    )
