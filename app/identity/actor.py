"""The actor of a request, and what a route may ask of them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import CurrentDatabase, Database, enter_tenant, from_state
from app.errors import AppError, Forbidden, Unauthenticated, id_of
from app.identity import service
from app.identity.models import Role
from app.identity.service import Actor
from app.limits import Limits
from app.settings import Settings

TenantId = Annotated[UUID, id_of("tenant")]
TENANT_HEADER = "Which tenant is meant; needed where the user belongs to several."

_bearer = HTTPBearer(scheme_name="bearer", auto_error=False, description="An access token or an API key.")


CurrentSettings = Annotated[Settings, from_state("settings")]
CurrentLimits = Annotated[Limits, from_state("limits")]

Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
TenantHeader = Annotated[TenantId | None, Header(alias="X-Tenant-Id", description=TENANT_HEADER)]


@dataclass(frozen=True)
class Authenticated:
    """The actor, and the request's one transaction, in their tenant."""

    actor: Actor
    session: AsyncSession


async def authenticate(
    database: CurrentDatabase, bearer: Bearer, x_tenant_id: TenantHeader = None
) -> AsyncIterator[Authenticated]:
    """Identify the actor and do the request's work in one transaction, committed before the reply."""
    async with database.identity() as session:
        actor = await _identify(session, bearer, x_tenant_id)
        await enter_tenant(session, actor.tenant_id)
        yield Authenticated(actor, session)


async def authenticate_apart(database: CurrentDatabase, bearer: Bearer, x_tenant_id: TenantHeader = None) -> Actor:
    """Identify the actor in a transaction that ends before the route begins, for one that waits for other parts."""
    async with database.identity() as session:
        return await _identify(session, bearer, x_tenant_id)


async def _identify(
    session: AsyncSession, bearer: HTTPAuthorizationCredentials | None, tenant_id: UUID | None
) -> Actor:
    if bearer is None:
        raise Unauthenticated(service.NOT_SIGNED_IN)
    return await service.identify(session, bearer.credentials, tenant_id)


async def check_credential(database: Database, authorization: str) -> AppError | None:
    """What is wrong with the credential of this header, as far as that is known before the request's work begins."""
    scheme, _, bearer = authorization.partition(" ")
    try:
        if scheme.lower() != "bearer":
            raise Unauthenticated(service.NOT_SIGNED_IN)
        async with database.identity() as session:
            await service.identify(session, bearer, None)
    except Unauthenticated as error:
        return error
    except Exception:
        # The route does the same, and its errors are answered.
        return None
    return None


CurrentAuthenticated = Annotated[Authenticated, Depends(authenticate, scope="function")]
ActorApart = Annotated[Actor, Depends(authenticate_apart)]


@dataclass(frozen=True)
class _Requirement:
    role: Role
    scope: str

    def check(self, actor: Actor) -> Actor:
        if not actor.allows(self.role, self.scope):
            raise Forbidden(f"This needs the scope {self.scope} and the role {self.role} or higher.")
        return actor


class Require(_Requirement):
    """For `Annotated[Actor, Depends(Require(Role.MEMBER, "chat:read"))]`: the actor, or Forbidden."""

    async def __call__(self, authenticated: CurrentAuthenticated) -> Actor:
        return self.check(authenticated.actor)


class RequireApart(_Requirement):
    """The same for a route that holds no transaction."""

    async def __call__(self, actor: ActorApart) -> Actor:
        return self.check(actor)


async def _session_of(authenticated: CurrentAuthenticated) -> AsyncSession:
    return authenticated.session


TenantSession = Annotated[AsyncSession, Depends(_session_of)]
ChatReader = Annotated[Actor, Depends(Require(Role.MEMBER, "chat:read"))]
ChatReaderApart = Annotated[Actor, Depends(RequireApart(Role.MEMBER, "chat:read"))]
ChatWriter = Annotated[Actor, Depends(Require(Role.MEMBER, "chat:write"))]
AttachmentReader = Annotated[Actor, Depends(Require(Role.MEMBER, "attachments:read"))]
AttachmentReaderApart = Annotated[Actor, Depends(RequireApart(Role.MEMBER, "attachments:read"))]
AttachmentWriter = Annotated[Actor, Depends(Require(Role.MEMBER, "attachments:write"))]
AttachmentWriterApart = Annotated[Actor, Depends(RequireApart(Role.MEMBER, "attachments:write"))]
AccountReader = Annotated[Actor, Depends(Require(Role.MEMBER, "account:read"))]
AccountWriter = Annotated[Actor, Depends(Require(Role.MEMBER, "account:write"))]
