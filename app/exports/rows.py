"""What an export says of each row. Columns are named one by one, so that a new secret is in no archive by itself."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from sqlalchemy import Select, false, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments.models import Attachment
from app.conversations.models import Conversation, Message
from app.exports.models import Export, ExportScope
from app.identity.audit import AuditEntry
from app.identity.models import ApiKey, Invitation, Membership, User
from app.runs.models import Run
from app.usage.models import UsageEntry

# Bounds the memory: a message may be long.
BATCH = 100

Row = dict[str, Any]
Statement = Select[*tuple[Any, ...]]

CONVERSATIONS = (
    Conversation.id,
    Conversation.user_id,
    Conversation.agent_key,
    Conversation.title,
    Conversation.visibility,
    Conversation.created_at,
    Conversation.updated_at,
)
MESSAGES = (
    Message.id,
    Message.conversation_id,
    Message.run_id,
    Message.role,
    Message.text,
    Message.input_ids,
    Message.image_places,
    Message.created_at,
)
RUNS = (
    Run.id,
    Run.conversation_id,
    Run.user_id,
    Run.agent_key,
    Run.status,
    Run.options,
    Run.input_message_id,
    Run.output_message_id,
    Run.usage,
    Run.booked_nano.label("cost_nano"),
    Run.booked_basis.label("cost_basis"),
    Run.error,
    Run.created_at,
    Run.started_at,
    Run.finished_at,
)
ATTACHMENTS = (
    Attachment.id,
    Attachment.conversation_id,
    Attachment.run_id,
    Attachment.message_id,
    Attachment.user_id,
    Attachment.agent_key,
    Attachment.kind,
    Attachment.purpose,
    Attachment.status,
    Attachment.filename,
    Attachment.mime_type,
    Attachment.size_bytes,
    Attachment.width,
    Attachment.height,
    Attachment.sha256,
    Attachment.storage_key,
    Attachment.tool_call_id,
    Attachment.prompt,
    Attachment.revised_prompt,
    Attachment.options,
    Attachment.parent_object_id,
    Attachment.blurhash,
    Attachment.error,
    Attachment.cost_nano,
    Attachment.cost_basis,
    Attachment.created_at,
)
MEMBERS = (Membership.user_id, User.email, User.name, Membership.role, Membership.created_at)
INVITATIONS = (Invitation.id, Invitation.email, Invitation.role, Invitation.expires_at, Invitation.created_at)
API_KEYS = (
    ApiKey.id,
    ApiKey.user_id,
    ApiKey.name,
    ApiKey.hint,
    ApiKey.scopes,
    ApiKey.created_at,
    ApiKey.expires_at,
    ApiKey.last_used_at,
    ApiKey.revoked_at,
)
USAGE = (
    UsageEntry.id,
    UsageEntry.user_id,
    UsageEntry.run_id,
    UsageEntry.call,
    UsageEntry.agent_key,
    UsageEntry.model,
    UsageEntry.kind,
    UsageEntry.quantity,
    UsageEntry.basis,
    UsageEntry.cost_nano,
    UsageEntry.object_id,
    UsageEntry.created_at,
)
AUDIT = (
    AuditEntry.id,
    AuditEntry.created_at,
    AuditEntry.actor_type,
    AuditEntry.actor_id,
    AuditEntry.user_id,
    AuditEntry.action,
    AuditEntry.target_type,
    AuditEntry.target_id,
    AuditEntry.changes,
    AuditEntry.request_id,
    AuditEntry.ip,
)


def selected(export: Export) -> Mapping[str, Statement]:
    """File's name -> its rows, in the order of an index; row security names the tenant."""
    conversations = select(*CONVERSATIONS).order_by(Conversation.user_id, Conversation.id)
    messages = select(*MESSAGES).order_by(Message.conversation_id, Message.id)
    runs = select(*RUNS).order_by(Run.conversation_id, Run.id)
    attachments = select(*ATTACHMENTS).order_by(Attachment.user_id, Attachment.id)
    members = select(*MEMBERS).join(User, User.id == Membership.user_id).order_by(Membership.user_id)
    invitations = select(*INVITATIONS)
    api_keys = select(*API_KEYS)
    usage = select(*USAGE).order_by(UsageEntry.created_at, UsageEntry.id)
    audit = select(*AUDIT).order_by(AuditEntry.id)
    if export.scope == ExportScope.ME:
        own = select(Conversation.id).where(Conversation.user_id == export.user_id)
        conversations = conversations.where(Conversation.user_id == export.user_id)
        messages = messages.where(Message.conversation_id.in_(own))
        runs = runs.where(Run.conversation_id.in_(own))
        attachments = attachments.where(Attachment.user_id == export.user_id)
        members = members.where(Membership.user_id == export.user_id)
        api_keys = api_keys.where(ApiKey.user_id == export.user_id)
        usage = usage.where(UsageEntry.user_id == export.user_id)
        # Not the user's, and what a member may not read.
        invitations, audit = invitations.where(false()), audit.where(false())
    return {
        "conversations": conversations,
        "messages": messages,
        "runs": runs,
        "attachments": attachments,
        "members": members,
        "invitations": invitations,
        "api_keys": api_keys,
        "usage": usage,
        "audit": audit,
    }


async def batches(session: AsyncSession, statement: Statement) -> AsyncIterator[list[Row]]:
    """By a cursor of the server."""
    result = await session.stream(statement.execution_options(yield_per=BATCH))
    async for part in result.mappings().partitions():
        yield [dict(row) for row in part]
