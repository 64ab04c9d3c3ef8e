"""Sign-up, sign-ins, passwords, invitations accepted, the caller's own page."""

from typing import Annotated
from uuid import UUID

from fastapi import Header, Response
from sqlalchemy import update

from app.accounts import acceptance, closing, passwords, service, sign_ins
from app.accounts.acceptance import NewAccount
from app.accounts.schemas import (
    Acceptance,
    Joined,
    JoinedAndSignedIn,
    Me,
    NewPassword,
    PasswordChange,
    PasswordResetRequest,
    Refresh,
    SignedUp,
    SignIn,
    SignInPage,
    SignUp,
    TokensView,
    UserChange,
    UserErasure,
    UserView,
)
from app.broker import Broker
from app.db import CurrentDatabase, IdentitySession, from_state
from app.erasure.schemas import ErasureRequested
from app.error_codes import ErrorCode
from app.errors import id_of
from app.identity.actor import Bearer, CurrentSettings, SignedInUser, TenantHeader, may_anywhere, require_user
from app.identity.anonymous import LimitedByAddress
from app.identity.models import User
from app.identity.permissions import Permission
from app.identity.service import Caller
from app.openapi import Router, problems
from app.paging import Paging
from app.tenants.schemas import TenantView

router = Router(prefix="/v1", tags=["accounts"])

SignInId = Annotated[UUID, id_of("sign-in")]
UserAgent = Annotated[str | None, Header(include_in_schema=False)]
CurrentBroker = Annotated[Broker, from_state("broker")]
GUESSED = (ErrorCode.LIMIT_EXCEEDED, ErrorCode.TOO_MANY_ATTEMPTS)


@router.post(
    "/signup",
    status_code=201,
    dependencies=[LimitedByAddress],
    responses=problems(ErrorCode.EMAIL_TAKEN, ErrorCode.SIGNUP_CLOSED, ErrorCode.LIMIT_EXCEEDED),
)
async def sign_up(
    body: SignUp, database: CurrentDatabase, settings: CurrentSettings, user_agent: UserAgent = None
) -> SignedUp:
    """Sign up a user with a new tenant.

    The user becomes the tenant's owner and is signed in.
    """
    password = body.password.get_secret_value()
    await passwords.check_new(password, body.email)
    made = await service.sign_up(
        database, settings, email=body.email, password=password, tenant_name=body.tenant_name, user_agent=user_agent
    )
    return SignedUp(
        user=UserView.model_validate(made.user),
        tenant=TenantView.model_validate(made.tenant),
        **vars(made.tokens),
    )


@router.post(
    "/tokens",
    status_code=201,
    dependencies=[LimitedByAddress],
    responses=problems(ErrorCode.UNAUTHENTICATED, *GUESSED),
)
async def sign_in(
    body: SignIn, database: CurrentDatabase, settings: CurrentSettings, user_agent: UserAgent = None
) -> TokensView:
    """Sign in by e-mail address and password.

    Send the access token as `Authorization: Bearer`; before it ends, trade the refresh token for new ones. After ten
    failures within a minute even the right password is refused for the rest of it.
    """
    pair = await service.sign_in(
        database, settings, email=body.email, password=body.password.get_secret_value(), user_agent=user_agent
    )
    return TokensView(**vars(pair))


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
        pair = await service.rotate(session, settings, body.refresh_token)
    if isinstance(pair, service.Stolen):
        raise service.refresh_rejected()
    return TokensView(**vars(pair))


@router.get("/tokens")
async def list_sign_ins(caller: SignedInUser, session: IdentitySession, query: Paging) -> SignInPage:
    """List the user's sign-ins.

    Newest first: those that have not ended, each with the program that it was made with.
    """
    return await sign_ins.listed(session, caller, query)


@router.delete("/tokens/current", status_code=204, response_class=Response)
async def sign_out(caller: SignedInUser, session: IdentitySession) -> None:
    """Sign out.

    The access token in use stops working, and every other token of the same sign-in.
    """
    await sign_ins.end(session, caller.user_id, caller.sign_in_id)


@router.delete("/tokens/{sign_in_id}", status_code=204, response_class=Response)
async def end_sign_in(sign_in_id: SignInId, caller: SignedInUser, session: IdentitySession) -> None:
    """End a sign-in.

    On a device that was lost, for example: its tokens stop working with the next request.
    """
    await sign_ins.end(session, caller.user_id, sign_in_id)


@router.delete("/tokens", status_code=204, response_class=Response)
async def end_sign_ins(caller: SignedInUser, session: IdentitySession) -> None:
    """End all sign-ins.

    This one, too.
    """
    await sign_ins.end_all(session, caller.user_id)


@router.get("/me")
async def get_me(
    caller: Annotated[Caller, may_anywhere(Permission.READ_ACCOUNT)], x_tenant_id: TenantHeader = None
) -> Me:
    """Get the caller's user, tenant, rights, and all their tenants.

    `scopes` is null where the role alone decides.
    """
    return Me.of(caller, x_tenant_id)


@router.patch("/me")
async def update_me(body: UserChange, caller: SignedInUser, session: IdentitySession) -> UserView:
    """Change the user's name.

    The other members of their tenants see it.
    """
    await session.execute(update(User).where(User.id == caller.user_id).values(name=body.name))
    return UserView(id=caller.user_id, email=caller.email, name=body.name)


@router.delete(
    "/me",
    status_code=202,
    responses=problems(ErrorCode.LAST_OWNER, ErrorCode.WRONG_PASSWORD, *GUESSED),
)
async def erase_me(
    body: UserErasure, caller: SignedInUser, database: CurrentDatabase, settings: CurrentSettings, broker: CurrentBroker
) -> ErasureRequested:
    """Erase the user.

    They are signed out everywhere at once. What they made in any tenant is removed, here, in the storage and at the
    provider, and so is a tenant that has no other member; the receipt tells how far that is. The last owner of a tenant
    with other members makes another one owner first.
    """
    return await closing.erase(database, broker, settings, caller, password=body.password.get_secret_value())


@router.put(
    "/me/password",
    status_code=204,
    response_class=Response,
    responses=problems(ErrorCode.WRONG_PASSWORD, *GUESSED),
)
async def change_password(body: PasswordChange, caller: SignedInUser, database: CurrentDatabase) -> None:
    """Change the password.

    Every other sign-in of the user ends.
    """
    await passwords.change(
        database,
        caller,
        current=body.current_password.get_secret_value(),
        new=body.new_password.get_secret_value(),
    )


@router.post(
    "/password-resets",
    status_code=202,
    response_class=Response,
    dependencies=[LimitedByAddress],
    responses=problems(ErrorCode.MAIL_UNAVAILABLE, *GUESSED),
)
async def request_password_reset(
    body: PasswordResetRequest,
    database: CurrentDatabase,
    settings: CurrentSettings,
    broker: CurrentBroker,
) -> None:
    """Ask for a mail with a token that sets a new password.

    The answer is the same whether or not the address has an account.
    """
    await passwords.request_reset(database, settings, broker, body.email)


@router.put(
    "/password-resets",
    status_code=204,
    response_class=Response,
    dependencies=[LimitedByAddress],
    responses=problems(ErrorCode.NOT_FOUND, *GUESSED),
)
async def reset_password(body: NewPassword, database: CurrentDatabase) -> None:
    """Set a new password with the token of a mail.

    The token is good for one use within an hour; every sign-in of the user ends.
    """
    await passwords.reset(database, body.token, new=body.new_password.get_secret_value())


@router.post(
    "/invitations/acceptance",
    status_code=201,
    dependencies=[LimitedByAddress],
    responses=problems(
        ErrorCode.NOT_FOUND,
        ErrorCode.SIGN_IN_REQUIRED,
        ErrorCode.SIGNUP_CLOSED,
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.USER_REQUIRED,
        ErrorCode.WRONG_ACCOUNT,
        *GUESSED,
    ),
)
async def accept_invitation(
    body: Acceptance,
    bearer: Bearer,
    database: CurrentDatabase,
    settings: CurrentSettings,
    user_agent: UserAgent = None,
) -> JoinedAndSignedIn | Joined:
    """Accept an invitation.

    Without a credential it makes an account for the invited address, which is signed in at once; where the address has
    an account, sign in and send the same with the access token.
    """
    if bearer is None:
        password = body.password.get_secret_value() if body.password else None
        account = NewAccount(password, body.name, user_agent)
        invited, tokens = await acceptance.accept_anew(database, settings, body.token, account)
        return JoinedAndSignedIn(tenant=invited.tenant, role=invited.role, **vars(tokens))
    caller = await require_user(database, bearer)
    invited = await acceptance.accept(database, body.token, caller)
    return Joined(tenant=invited.tenant, role=invited.role)
