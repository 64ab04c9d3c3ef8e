"""Attachments on the wire, and as they lie in the event log."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.attachments.links import Grant, Links
from app.attachments.models import Attachment, AttachmentKind, AttachmentStatus


class AttachmentFacts(BaseModel):
    """All that is the same for every reader; `width` and `height` in pixels, `sha256` in hex."""

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
    created_at: datetime


class AttachmentView(AttachmentFacts):
    """`url` needs no Authorization header and works until `url_expires_at`; null until the object is stored."""

    object_id: UUID
    url: str | None
    url_expires_at: datetime | None


def grant_for(row: Attachment) -> Grant:
    return Grant(row.storage_key, row.filename, row.mime_type)


async def view(row: Attachment, links: Links) -> AttachmentView:
    facts = AttachmentFacts.model_validate(row).model_dump()
    if row.status != AttachmentStatus.STORED:
        return AttachmentView(**facts, url=None, url_expires_at=None)
    link = await links.to(grant_for(row))
    return AttachmentView(**facts, url=link.url, url_expires_at=link.expires_at)


async def views(rows: list[Attachment], links: Links) -> list[AttachmentView]:
    return [await view(row, links) for row in rows]


def log_form(row: Attachment) -> dict[str, Any]:
    """For the event log: the facts and the object's key; never a link, which would go stale."""
    return {**AttachmentFacts.model_validate(row).model_dump(mode="json"), "storage_key": row.storage_key}


async def from_log(form: dict[str, Any], links: Links) -> dict[str, Any]:
    """The log's form as its reader sees it: the key gives way to a fresh link."""
    facts = {name: value for name, value in form.items() if name != "storage_key"}
    if facts["status"] != AttachmentStatus.STORED:
        return {**facts, "url": None, "url_expires_at": None}
    link = await links.to(Grant(form["storage_key"], form["filename"], form["mime_type"]))
    return {**facts, "url": link.url, "url_expires_at": link.expires_at.isoformat()}
