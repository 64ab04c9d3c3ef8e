"""The caller and the actor of a request, and what a route may ask of them."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from uuid import UUID

from fastapi import Depends, Header
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import CurrentDatabase, Database, enter_tenant, from_state
from app.errors import AppError, Unauthenticated, UserRequired, id_of
from app.identity import service
from app.identity.permissions import Permission
from app.identity.service import Actor, Caller, SignedIn
from app.limits import Limits
from app.logs import tag
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
) -> AsyncGenerator[Authenticated]:
    """Identify the actor and do the request's work in one transaction, committed before the reply."""
    async with database.identity() as session:
        caller = await identify(session, bearer)
        actor = actor_of(caller, x_tenant_id)
        await enter_tenant(session, actor.tenant_id)
        yield Authenticated(actor, session)


async def authenticate_apart(database: CurrentDatabase, bearer: Bearer, x_tenant_id: TenantHeader = None) -> Actor:
    """Identify the actor in a transaction that ends before the route begins, for one that waits for other parts."""
    async with database.identity() as session:
        caller = await identify(session, bearer)
    return actor_of(caller, x_tenant_id)


async def identify(session: AsyncSession, bearer: HTTPAuthorizationCredentials | None) -> Caller:
    if bearer is None:
        raise Unauthenticated(service.NOT_SIGNED_IN)
    caller = await service.identify(session, bearer.credentials)
    only = caller.find_membership(None)
    tag(user_id=caller.user_id, tenant_id=only and only.tenant_id)
    return caller


def actor_of(caller: Caller, tenant_id: UUID | None) -> Actor:
    """In the tenant that was asked for, which the log names from now on."""
    actor = caller.actor(caller.require_membership(tenant_id))
    tag(tenant_id=actor.tenant_id)
    return actor


async def require_user(database: CurrentDatabase, bearer: Bearer) -> SignedIn:
    """A signed-in user, whatever their tenants; raises UserRequired where the credential is an API key."""
    caller = await identify_apart(database, bearer)
    if not isinstance(caller, SignedIn):
        raise UserRequired
    return caller


async def identify_apart(database: CurrentDatabase, bearer: Bearer) -> Caller:
    async with database.identity() as session:
        return await identify(session, bearer)


def bearer_of(authorization: str) -> HTTPAuthorizationCredentials | None:
    """The credential of this header, for what is done outside of a route."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return None
    return HTTPAuthorizationCredentials(scheme=scheme, credentials=credentials)


async def check_credential(database: Database, authorization: str) -> AppError | None:
    """What is wrong with the credential of this header, as far as that is known before the request's work begins."""
    try:
        async with database.identity() as session:
            await identify(session, bearer_of(authorization))
    except Unauthenticated as error:
        return error
    except Exception:
        # The route does the same, and its errors are answered.
        return None
    return None


CurrentAuthenticated = Annotated[Authenticated, Depends(authenticate, scope="function")]
ActorApart = Annotated[Actor, Depends(authenticate_apart)]


@dataclass(frozen=True)
class _Needs:
    permission: Permission

    @property
    def needs(self) -> dict[str, str | None]:
        """For the OpenAPI document."""
        return {"role": self.permission.role, "scope": self.permission.scope}


class _May(_Needs):
    async def __call__(self, authenticated: CurrentAuthenticated) -> Actor:
        authenticated.actor.require(self.permission)
        return authenticated.actor


class _MayApart(_Needs):
    async def __call__(self, actor: ActorApart) -> Actor:
        actor.require(self.permission)
        return actor


class _MayAnywhere(_Needs):
    @property
    def needs(self) -> dict[str, str | None]:
        return {"role": None, "scope": self.permission.scope}

    async def __call__(self, database: CurrentDatabase, bearer: Bearer) -> Caller:
        caller = await identify_apart(database, bearer)
        caller.require(self.permission)
        return caller


class _UserOnly:
    needs: ClassVar[dict[str, str | None]] = {"role": None, "scope": None}

    async def __call__(self, database: CurrentDatabase, bearer: Bearer) -> SignedIn:
        return await require_user(database, bearer)


SignedInUser = Annotated[SignedIn, Depends(_UserOnly())]
"""A signed-in user, in whichever tenant: no API key."""


def may(permission: Permission) -> Any:
    """For `actor: Annotated[Actor, may(READ_CHAT)]`: the actor, who has the permission; else the request is refused."""
    return Depends(_May(permission))


def may_apart(permission: Permission) -> Any:
    """The same for a route that holds no transaction."""
    return Depends(_MayApart(permission))


def may_anywhere(permission: Permission) -> Any:
    """For `caller: Annotated[Caller, may_anywhere(READ_ACCOUNT)]`: the caller, in whichever tenant."""
    return Depends(_MayAnywhere(permission))


async def _session_of(authenticated: CurrentAuthenticated) -> AsyncSession:
    return authenticated.session


TenantSession = Annotated[AsyncSession, Depends(_session_of)]
