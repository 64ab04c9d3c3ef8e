"""Tenants, their members, invitations, API keys and audit log, on the wire."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, EmailStr, Field

from app.bodies import Body, Name, example
from app.db import now
from app.identity.audit import Action, ActorType, TargetType
from app.identity.models import Role, Tenant
from app.identity.permissions import SCOPES
from app.paging import Page

MAX_RETENTION_DAYS = 3650


class TenantView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str


class TenantDetails(TenantView):
    """`retention_days`: after how long an untouched conversation is deleted; null: never."""

    plan: str
    retention_days: int | None
    suspended: bool
    created_at: datetime

    @classmethod
    def of(cls, row: Tenant) -> "TenantDetails":
        return cls(
            id=row.id,
            name=row.name,
            plan=row.plan,
            retention_days=row.retention_days,
            suspended=row.suspended_at is not None,
            created_at=row.created_at,
        )


class NewTenant(Body):
    model_config = example({"name": "Acme"})

    name: Name


class TenantChange(Body):
    """What is left out stays as it is."""

    model_config = example({"retention_days": 90})

    # Not null: a tenant always has a name.
    name: Name = ""
    retention_days: Annotated[int, Field(ge=1, le=MAX_RETENTION_DAYS, strict=True)] | None = None


class MemberView(BaseModel):
    """`created_at`: when they joined."""

    user_id: UUID
    email: str
    name: str | None
    role: Role
    created_at: datetime


class MemberPage(Page[MemberView]):
    pass


class RoleChange(Body):
    model_config = example({"role": "admin"})

    role: Role


class NewInvitation(Body):
    model_config = example({"email": "grace@example.com", "role": "member"})

    email: EmailStr
    role: Role


class InvitationView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    role: Role
    expires_at: datetime
    created_at: datetime


class InvitationPage(Page[InvitationView]):
    pass


class InvitationMade(InvitationView):
    """`token` is shown this once."""

    token: str


def _known_scope(scope: str) -> str:
    if scope not in SCOPES:
        raise ValueError(f"unknown scope; allowed are {', '.join(SCOPES)}")
    return scope


def _in_the_future(moment: datetime) -> datetime:
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("give a moment before the year 10000, in UTC") from None
    if moment <= now():
        raise ValueError("the key would have expired already: give a moment in the future")
    return moment


class NewApiKey(Body):
    model_config = example({"name": "Gallery", "scopes": ["attachments:read"]})

    name: Name
    scopes: Annotated[list[Annotated[str, AfterValidator(_known_scope)]], Field(max_length=len(SCOPES))] | None = None
    expires_at: Annotated[AwareDatetime, AfterValidator(_in_the_future)] | None = None


class ApiKeyView(BaseModel):
    """`hint`: the last four characters of the key; `user_id`: whose key it is."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    user_id: UUID
    name: str
    hint: str
    scopes: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class ApiKeyPage(Page[ApiKeyView]):
    pass


class ApiKeyMade(ApiKeyView):
    """`key` is shown this once."""

    key: str


class AuditActor(BaseModel):
    """`id` is a user's or an API key's, `email` that user's or the key's user's; both are null for the service."""

    type: ActorType
    id: UUID | None
    email: str | None


class AuditTarget(BaseModel):
    type: TargetType
    id: UUID


class AuditEntryView(BaseModel):
    """`changes`: of each changed field its value before and after."""

    id: UUID
    at: datetime
    actor: AuditActor
    action: Action
    target: AuditTarget
    changes: dict[str, list[Any]]
    request_id: str | None
    ip: str | None


class AuditPage(Page[AuditEntryView]):
    pass
