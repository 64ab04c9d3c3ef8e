"""Sign-up, sign-in, the caller's own page, API keys."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Response
from sqlalchemy import select

from app.accounts.schemas import (
    ApiKeyMade,
    ApiKeyPage,
    ApiKeyView,
    Me,
    NewApiKey,
    Refresh,
    SignedUp,
    SignIn,
    SignUp,
    TenantView,
    TokensView,
    UserView,
)
from app.db import CurrentDatabase, IdentitySession
from app.error_codes import ErrorCode
from app.errors import Invalid, id_of
from app.identity import service as identity
from app.identity.actor import (
    AccountReader,
    AccountWriter,
    ActorApart,
    CurrentSettings,
    TenantSession,
)
from app.identity.anonymous import LimitedByAddress
from app.identity.models import ApiKey, Tenant, User
from app.openapi import problems
from app.paging import PageQuery, fetch_page

router = APIRouter(prefix="/v1", tags=["accounts"])


@router.post(
    "/signup",
    status_code=201,
    dependencies=[LimitedByAddress],
    responses=problems(ErrorCode.EMAIL_TAKEN, ErrorCode.SIGNUP_CLOSED, ErrorCode.LIMIT_EXCEEDED),
)
async def sign_up(body: SignUp, database: CurrentDatabase, settings: CurrentSettings) -> SignedUp:
    """Sign up a user with a new tenant.

    The user becomes the tenant's owner and is signed in.
    """
    user, tenant, pair = await identity.sign_up(
        database,
        settings,
        email=body.email,
        password=body.password.get_secret_value(),
        tenant_name=body.tenant_name,
    )
    return SignedUp(
        user=UserView.model_validate(user), tenant=TenantView.model_validate(tenant), **_tokens(pair).model_dump()
    )


@router.post(
    "/tokens",
    status_code=201,
    dependencies=[LimitedByAddress],
    responses=problems(ErrorCode.UNAUTHENTICATED, ErrorCode.LIMIT_EXCEEDED),
)
async def sign_in(body: SignIn, database: CurrentDatabase, settings: CurrentSettings) -> TokensView:
    """Sign in by e-mail address and password.

    Send the access token as `Authorization: Bearer`; before it ends, trade the refresh token for new ones.
    """
    pair = await identity.sign_in(database, settings, email=body.email, password=body.password.get_secret_value())
    return _tokens(pair)


@router.post(
    "/tokens/refresh",
    status_code=201,
    dependencies=[LimitedByAddress],
    responses=problems(ErrorCode.UNAUTHENTICATED, ErrorCode.LIMIT_EXCEEDED),
)
async def refresh_tokens(body: Refresh, settings: CurrentSettings, database: CurrentDatabase) -> TokensView:
    """Trade a refresh token for new tokens.

    Each refresh token is good for one use. A second use within ten seconds gets the same tokens again; a later one
    counts as theft and ends every session that began with the same sign-in.
    """
    # Not the request's session: a theft must be committed although the answer is an error.
    async with database.identity() as session:
        pair = await identity.rotate(session, settings, body.refresh_token)
    if isinstance(pair, identity.Stolen):
        raise identity.refresh_rejected()
    return _tokens(pair)


@router.delete(
    "/tokens/current", status_code=204, response_class=Response, responses=problems(ErrorCode.INVALID_REQUEST)
)
async def sign_out(actor: ActorApart, session: IdentitySession) -> None:
    """Sign out.

    The access token in use stops working, and every other token of the same sign-in. An API key cannot: revoke it.
    """
    if actor.token_family is None:
        raise Invalid("An API key does not sign out: revoke it with DELETE /v1/api-keys/{id}.")
    await identity.revoke_family(session, actor.token_family)


@router.get("/me")
async def get_me(actor: AccountReader, session: TenantSession) -> Me:
    """Get the caller's user, tenant and rights.

    `scopes` is null where the role alone decides.
    """
    user = (await session.execute(select(User.id, User.email).where(User.id == actor.user_id))).one()
    tenant = (await session.execute(select(Tenant.id, Tenant.name).where(Tenant.id == actor.tenant_id))).one()
    return Me(
        user=UserView.model_validate(user),
        tenant=TenantView.model_validate(tenant),
        role=actor.role,
        scopes=None if actor.scopes is None else sorted(actor.scopes),
    )


@router.post("/api-keys", status_code=201)
async def create_api_key(body: NewApiKey, actor: AccountWriter, session: TenantSession) -> ApiKeyMade:
    """Create an API key.

    It has the caller's rights, or only the given `scopes` of them. `key` is shown this once.
    """
    key, secret = await identity.make_api_key(
        session, actor, name=body.name, scopes=body.scopes, expires_at=body.expires_at
    )
    return ApiKeyMade(key=secret, **ApiKeyView.model_validate(key).model_dump())


@router.get("/api-keys")
async def list_api_keys(
    actor: AccountReader, session: TenantSession, query: Annotated[PageQuery, Depends()]
) -> ApiKeyPage:
    """List the caller's API keys.

    Newest first, without the revoked ones and without the secrets.
    """
    statement = select(ApiKey).where(ApiKey.user_id == actor.user_id, ApiKey.revoked_at.is_(None))
    keys, cursor = await fetch_page(session, statement, ApiKey.id, query)
    return ApiKeyPage(data=[ApiKeyView.model_validate(key) for key in keys], next_cursor=cursor)


@router.delete("/api-keys/{key_id}", status_code=204, response_class=Response)
async def revoke_api_key(
    key_id: Annotated[UUID, id_of("API key")], actor: AccountWriter, session: TenantSession
) -> None:
    """Revoke an API key.

    It stops working with the next request.
    """
    await identity.revoke_api_key(session, actor, key_id)


def _tokens(pair: identity.TokenPair) -> TokensView:
    return TokensView(access_token=pair.access_token, refresh_token=pair.refresh_token, expires_in=pair.expires_in)
