"""The actor of a request, and what a route may ask of them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, cast
from uuid import UUID

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, database
from app.errors import Forbidden, Unauthenticated, id_of
from app.identity import service
from app.identity.models import Role
from app.identity.service import Actor
from app.settings import Settings

TenantId = Annotated[UUID, id_of("tenant")]
TENANT_HEADER = "Which tenant is meant; needed where the user belongs to several."

_bearer = HTTPBearer(scheme_name="bearer", auto_error=False, description="An access token or an API key.")


def settings_of(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


CurrentSettings = Annotated[Settings, Depends(settings_of)]


async def authenticate(
    database: Annotated[Database, Depends(database, scope="function")],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    x_tenant_id: Annotated[TenantId | None, Header(alias="X-Tenant-Id", description=TENANT_HEADER)] = None,
) -> Actor:
    if bearer is None:
        raise Unauthenticated(service.NOT_SIGNED_IN)
    async with database.identity() as session:
        return await service.identify(session, bearer.credentials, x_tenant_id)


CurrentActor = Annotated[Actor, Depends(authenticate)]


@dataclass(frozen=True)
class Require:
    """For `Annotated[Actor, Depends(Require(Role.MEMBER, "chat:read"))]`: the actor, or Forbidden."""

    role: Role
    scope: str

    async def __call__(self, actor: CurrentActor) -> Actor:
        if not actor.allows(self.role, self.scope):
            raise Forbidden(f"This needs the scope {self.scope} and the role {self.role} or higher.")
        return actor


async def open_session(
    actor: CurrentActor, database: Annotated[Database, Depends(database, scope="function")]
) -> AsyncIterator[AsyncSession]:
    """The request's one transaction, in the actor's tenant; committed before the reply."""
    async with database.tenant(actor.tenant_id) as session:
        yield session


TenantSession = Annotated[AsyncSession, Depends(open_session, scope="function")]
ChatReader = Annotated[Actor, Depends(Require(Role.MEMBER, "chat:read"))]
ChatWriter = Annotated[Actor, Depends(Require(Role.MEMBER, "chat:write"))]
AttachmentReader = Annotated[Actor, Depends(Require(Role.MEMBER, "attachments:read"))]
AttachmentWriter = Annotated[Actor, Depends(Require(Role.MEMBER, "attachments:write"))]
AccountReader = Annotated[Actor, Depends(Require(Role.MEMBER, "account:read"))]
AccountWriter = Annotated[Actor, Depends(Require(Role.MEMBER, "account:write"))]
