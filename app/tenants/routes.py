"""The tenant's own affairs: its name, members, invitations, API keys, audit log."""

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response
from sqlalchemy import select

from app.broker import Broker
from app.db import CurrentDatabase, from_state
from app.error_codes import ErrorCode
from app.errors import Forbidden, id_of
from app.identity.actor import CurrentSettings, SignedInUser, TenantSession, may
from app.identity.audit import Action
from app.identity.models import ApiKey, Invitation, Membership, Tenant
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.openapi import Router, problems
from app.paging import Paging, fetch_page
from app.tenants import api_keys, audit_log, invitations, service
from app.tenants.schemas import (
    ApiKeyMade,
    ApiKeyPage,
    ApiKeyView,
    AuditPage,
    InvitationMade,
    InvitationPage,
    InvitationView,
    MemberPage,
    MemberView,
    NewApiKey,
    NewInvitation,
    NewTenant,
    RoleChange,
    TenantChange,
    TenantDetails,
)

router = Router(prefix="/v1", tags=["tenants"])

UserId = Annotated[UUID, id_of("member")]
InvitationId = Annotated[UUID, id_of("invitation")]
KeyId = Annotated[UUID, id_of("API key")]
CurrentBroker = Annotated[Broker, from_state("broker")]


@router.post("/tenants", status_code=201, responses=problems(ErrorCode.SIGNUP_CLOSED))
async def create_tenant(
    body: NewTenant, caller: SignedInUser, database: CurrentDatabase, settings: CurrentSettings
) -> TenantDetails:
    """Create a tenant.

    The caller becomes its owner.
    """
    if not settings.signup_open:
        raise Forbidden("New tenants are closed: ask whoever runs this service.", code=ErrorCode.SIGNUP_CLOSED)
    async with database.identity() as session:
        return TenantDetails.of(await service.create(session, caller.user_id, body.name, settings.default_plan))


@router.get("/tenants/current")
async def get_tenant(actor: Annotated[Actor, may(Permission.READ_ACCOUNT)], session: TenantSession) -> TenantDetails:
    """Get the tenant.

    The caller's only one, or the one that `X-Tenant-Id` names.
    """
    tenant = await session.scalars(select(Tenant).where(Tenant.id == actor.tenant_id))
    return TenantDetails.of(tenant.one())


@router.patch("/tenants/current")
async def update_tenant(
    body: TenantChange, actor: Annotated[Actor, may(Permission.MANAGE_TENANT)], session: TenantSession
) -> TenantDetails:
    """Rename the tenant, or set how long its conversations are kept.

    A conversation that nobody has touched for `retention_days` is deleted; null keeps all.
    """
    return TenantDetails.of(await service.change(session, actor, body))


@router.get("/members")
async def list_members(
    actor: Annotated[Actor, may(Permission.READ_MEMBERS)], session: TenantSession, query: Paging
) -> MemberPage:
    """List the tenant's members.

    Those whose accounts are oldest first.
    """
    rows, cursor = await fetch_page(session, select(Membership), Membership.user_id, query, oldest_first=True)
    return MemberPage(data=await service.members(session, rows), next_cursor=cursor)


@router.patch("/members/{user_id}", responses=problems(ErrorCode.LAST_OWNER))
async def change_role(
    user_id: UserId,
    body: RoleChange,
    actor: Annotated[Actor, may(Permission.MANAGE_MEMBERS)],
    session: TenantSession,
) -> MemberView:
    """Change a member's role.

    It holds from the member's next request on. Only an owner makes owners, or changes the role of one.
    """
    return await service.change_role(session, actor, user_id, body.role)


@router.post("/invitations", status_code=201, responses=problems(ErrorCode.ALREADY_MEMBER))
async def create_invitation(
    body: NewInvitation,
    actor: Annotated[Actor, may(Permission.MANAGE_MEMBERS)],
    session: TenantSession,
    settings: CurrentSettings,
    broker: CurrentBroker,
) -> InvitationMade:
    """Invite a person.

    They get a mail with the `token`, which is shown this once and good for seven days. A new invitation for the same
    address replaces the old one.
    """
    row, token = await invitations.invite(
        session, broker, settings.signing_keys(), actor, email=body.email, role=body.role
    )
    return InvitationMade(token=token, **InvitationView.model_validate(row).model_dump())


@router.get("/invitations")
async def list_invitations(
    actor: Annotated[Actor, may(Permission.MANAGE_MEMBERS)], session: TenantSession, query: Paging
) -> InvitationPage:
    """List the invitations.

    Newest first: those that are neither accepted nor revoked, expired ones among them.
    """
    rows, cursor = await fetch_page(session, select(Invitation), Invitation.id, query)
    return InvitationPage(data=[InvitationView.model_validate(row) for row in rows], next_cursor=cursor)


@router.delete("/invitations/{invitation_id}", status_code=204, response_class=Response)
async def revoke_invitation(
    invitation_id: InvitationId, actor: Annotated[Actor, may(Permission.MANAGE_MEMBERS)], session: TenantSession
) -> None:
    """Revoke an invitation.

    Its token is not good any more.
    """
    await invitations.revoke(session, actor, invitation_id)


@router.post("/api-keys", status_code=201)
async def create_api_key(
    body: NewApiKey, actor: Annotated[Actor, may(Permission.MANAGE_OWN_KEYS)], session: TenantSession
) -> ApiKeyMade:
    """Create an API key.

    It has the caller's rights as far as they have scopes, or only the given `scopes` of them. `key` is shown this once.
    """
    key, secret = await api_keys.create(session, actor, name=body.name, scopes=body.scopes, expires_at=body.expires_at)
    return ApiKeyMade(key=secret, **ApiKeyView.model_validate(key).model_dump())


@router.get("/api-keys")
async def list_api_keys(
    actor: Annotated[Actor, may(Permission.MANAGE_OWN_KEYS)],
    session: TenantSession,
    query: Paging,
    everyones: Annotated[
        bool, Query(alias="all", description="The keys of all members; needs the role admin.")
    ] = False,
) -> ApiKeyPage:
    """List API keys.

    The caller's, newest first, without the revoked ones and without the secrets.
    """
    statement = api_keys.listed(actor, everyones=everyones)
    keys, cursor = await fetch_page(session, statement, ApiKey.id, query)
    return ApiKeyPage(data=[ApiKeyView.model_validate(key) for key in keys], next_cursor=cursor)


@router.delete("/api-keys/{key_id}", status_code=204, response_class=Response)
async def revoke_api_key(
    key_id: KeyId, actor: Annotated[Actor, may(Permission.MANAGE_OWN_KEYS)], session: TenantSession
) -> None:
    """Revoke an API key.

    It stops working with the next request. An admin may revoke the key of any member.
    """
    await api_keys.revoke(session, actor, key_id)


@router.get("/audit")
async def list_audit(
    actor: Annotated[Actor, may(Permission.READ_AUDIT)],
    session: TenantSession,
    query: Paging,
    action: Annotated[Action | None, Query(description="Only these.")] = None,
    actor_id: Annotated[UUID | None, Query(description="What this user or API key did.")] = None,
    target_id: Annotated[UUID | None, Query(description="What was done to this.")] = None,
) -> AuditPage:
    """Read the audit log.

    Newest first: who changed what in the tenant.
    """
    rows, cursor = await fetch_page(
        session, audit_log.selected(action, actor_id, target_id), audit_log.AuditEntry.id, query
    )
    return AuditPage(data=await audit_log.views(session, rows), next_cursor=cursor)
