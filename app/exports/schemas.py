"""Exports, on the wire."""

from datetime import datetime, timedelta
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.attachments.file_tokens import ARCHIVE_TYPE, Grant
from app.attachments.links import Links
from app.bodies import Body, example
from app.exports.models import Export, ExportScope, ExportStatus
from app.paging import Page


class NewExport(Body):
    model_config = example({"scope": "me"})

    scope: ExportScope


class ExportView(BaseModel):
    """`url` needs no Authorization header; it, `size_bytes` and `sha256` (hex) are null until the archive is there.

    At `expires_at` the archive is deleted, and its export with it; no link outlives it, so that there is none in the
    last minutes.
    """

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    scope: ExportScope
    status: ExportStatus
    created_at: datetime
    expires_at: datetime
    size_bytes: int | None
    sha256: str | None
    url: str | None = None

    @classmethod
    async def of(cls, row: Export, links: Links) -> Self:
        view = cls.model_validate(row)
        lifetime = timedelta(seconds=links.settings.link_ttl_seconds)
        if row.status == ExportStatus.COMPLETED and links.clock.now() + lifetime <= row.expires_at:
            grant = Grant(row.storage_key, f"easel-{row.scope}-{row.created_at:%Y-%m-%d}.zip", ARCHIVE_TYPE)
            (link,) = await links.to([grant])
            view.url = link.url
        return view


class ExportPage(Page[ExportView]):
    pass
