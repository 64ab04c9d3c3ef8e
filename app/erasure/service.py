"""Requesting an erasure: the intent, the end of the runs and of every access, all in one transaction."""

from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.broker import Broker
from app.conversations import service as conversations
from app.conversations.models import Conversation, Visibility
from app.db import enter_tenant, uuid7
from app.erasure.models import Erasure, ErasureKind, ErasureStatus
from app.erasure.rows import Deletion, delete_conversations, leave_prefix
from app.erasure.schemas import ErasureRequested, ErasureView
from app.errors import Invalid, NotFound
from app.identity import audit, credentials
from app.identity.audit import Action, AuditEntry, Author, TargetType
from app.identity.models import Invitation, Membership, Tenant
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.runs.models import Run
from app.runs.stopping import stop
from app.settings import Settings
from app.tenants import service as tenants

_WENT = (Action.MEMBER_LEFT, Action.MEMBER_REMOVED)


async def find(session: AsyncSession, receipt: str) -> ErasureView:
    """As identity. Raises NotFound."""
    parts = await session.scalars(select(Erasure).where(Erasure.receipt_hash == credentials.fingerprint(receipt)))
    if found := parts.all():
        return ErasureView.of(found)
    raise NotFound("erasure")


async def erase_tenant(
    session: AsyncSession, broker: Broker, settings: Settings, actor: Actor, confirm: str
) -> ErasureRequested:
    """Raises Invalid where `confirm` is not the tenant's name, NotFound where somebody else was faster."""
    name = await session.scalar(select(Tenant.name).where(Tenant.id == actor.tenant_id))
    if name is not None and confirm != name:
        fault = "write the tenant's name as it is"
        raise Invalid(f"confirm: {fault}.", errors=[{"field": "confirm", "message": fault, "given": confirm[:100]}])
    receipt = _new_receipt()
    await _take_tenant(session, broker, settings, receipt, actor.tenant_id, actor.user_id)
    return _requested(receipt)


async def erase_member(session: AsyncSession, broker: Broker, actor: Actor, user_id: UUID) -> ErasureRequested:
    """Remove the member, and have all that they made here erased; also of one who went before.

    Raises as `tenants.service.remove_member`.
    """
    try:
        await tenants.remove_member(session, actor, user_id, needs=Permission.ERASE_TENANT)
    except NotFound:
        went = select(AuditEntry.id).where(AuditEntry.target_id == user_id, AuditEntry.action.in_(_WENT))
        if await session.scalar(went.limit(1)) is None:
            raise
        actor.require(Permission.ERASE_TENANT)
    receipt = _new_receipt()
    await _take_member(session, broker, receipt, actor.tenant_id, user_id, Author.of(actor))
    return _requested(receipt)


async def erase_user(session: AsyncSession, broker: Broker, settings: Settings, user_id: UUID) -> ErasureRequested:
    """Begun as identity, where the user was signed out already; ends in the last of their tenants.

    A tenant without another member goes with them. Raises Conflict where they are the last owner of another.
    """
    receipt = _new_receipt()
    session.add(_part(receipt, ErasureKind.ACCOUNT, None, user_id))
    belongs = await session.scalars(select(Membership.tenant_id).where(Membership.user_id == user_id))
    current = set(belongs.all())
    belonged = await session.scalars(
        select(AuditEntry.tenant_id).where(AuditEntry.target_id == user_id, AuditEntry.action.in_(_WENT))
    )
    for tenant_id in sorted(current | set(belonged.all())):
        await session.flush()
        await enter_tenant(session, tenant_id)
        if tenant_id in current and not await tenants.leave_for_good(session, tenant_id, user_id):
            await _take_tenant(session, broker, settings, receipt, tenant_id, user_id)
        else:
            await _take_member(session, broker, receipt, tenant_id, user_id, Author.user(user_id))
    await session.flush()
    return _requested(receipt)


async def delete_conversation(
    session: AsyncSession, broker: Broker, settings: Settings, actor: Actor, conversation_id: UUID
) -> None:
    """Its rows at once, its objects and what the provider has of it soon after. Raises NotFound."""
    conversation = await conversations.get_own(session, actor, conversation_id)
    await stop(session, broker, Run.conversation_id == conversation.id)
    deletion = Deletion.of(settings, actor.tenant_id)
    await delete_conversations(session, deletion, Conversation.id == conversation.id, Author.of(actor))


def _new_receipt() -> str:
    return credentials.new_secret(credentials.ERASURE_PREFIX)


def _requested(receipt: str) -> ErasureRequested:
    return ErasureRequested(receipt=receipt, status=ErasureStatus.QUEUED)


async def _take_tenant(
    session: AsyncSession, broker: Broker, settings: Settings, receipt: str, tenant_id: UUID, user_id: UUID
) -> None:
    """From the commit on it answers like one that never was: nobody is a member, and no key is left."""
    # Invitations first: whoever is just accepting one is a member by the time that the members go.
    await session.execute(delete(Invitation))
    members = await session.execute(delete(Membership).returning(Membership.user_id, Membership.role))
    roles = {member.user_id: member.role for member in members}
    if user_id not in roles:
        raise NotFound("tenant")
    Actor(user_id, tenant_id, roles[user_id]).require(Permission.ERASE_TENANT)
    await stop(session, broker)
    part = _part(receipt, ErasureKind.TENANT, tenant_id, None)
    session.add(part)
    await leave_prefix(session, Deletion.of(settings, tenant_id, part.id), settled=False)
    author = Author.user(user_id)
    audit.record(session, tenant_id, author, Action.ERASURE_REQUESTED, TargetType.TENANT, tenant_id)
    await session.flush()


async def _take_member(
    session: AsyncSession, broker: Broker, receipt: str, tenant_id: UUID, user_id: UUID, author: Author
) -> None:
    """Once they are no member any more."""
    await stop(session, broker, Run.user_id == user_id)
    await session.execute(
        update(Conversation).where(Conversation.user_id == user_id).values(visibility=Visibility.PRIVATE)
    )
    session.add(_part(receipt, ErasureKind.MEMBER, tenant_id, user_id))
    audit.record(session, tenant_id, author, Action.ERASURE_REQUESTED, TargetType.USER, user_id)
    await session.flush()


def _part(receipt: str, kind: ErasureKind, tenant_id: UUID | None, user_id: UUID | None) -> Erasure:
    return Erasure(
        id=uuid7(),
        receipt_hash=credentials.fingerprint(receipt),
        kind=kind,
        tenant_id=tenant_id,
        user_id=user_id,
    )
