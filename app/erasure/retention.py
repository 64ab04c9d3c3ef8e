"""Conversations that nobody has touched for as long as their tenant keeps them are deleted, by `system`."""

import logging
from datetime import timedelta

from sqlalchemy import select

from app.conversations.models import Conversation
from app.db import Database, now
from app.erasure.rows import Deletion, delete_conversations
from app.identity import audit
from app.identity.models import Tenant
from app.settings import Settings

log = logging.getLogger(__name__)


async def retain(database: Database, settings: Settings) -> int:
    """How many rows are gone."""
    async with database.identity() as session:
        limited = await session.execute(
            select(Tenant.id, Tenant.retention_days).where(Tenant.retention_days.is_not(None)).order_by(Tenant.id)
        )
        limits = {row.id: int(row.retention_days) for row in limited}
    rows = 0
    for tenant_id, days in limits.items():
        old, deletion = Conversation.updated_at < now() - timedelta(days=days), Deletion.of(settings, tenant_id)
        deleted = 1
        while deleted:
            async with database.tenant(tenant_id) as session:
                deleted = await delete_conversations(session, deletion, old, audit.SYSTEM)
            rows += deleted
    log.info("retention.applied", extra={"tenants": len(limits), "rows": rows})
    return rows
