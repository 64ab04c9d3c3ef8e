"""Sign-up, sign-ins, passwords and the caller's own page, on the wire."""

from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr, Field, SecretStr

from app.bodies import Body, Name, example, storable
from app.identity.models import Role
from app.identity.service import Caller
from app.paging import Page
from app.tenants.schemas import TenantView


def _encodable(secret: SecretStr) -> SecretStr:
    """A hash is made of bytes, and JSON may hold half a character."""
    try:
        secret.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("a string of valid Unicode") from None
    return secret


def _typeable(secret: SecretStr) -> SecretStr:
    storable(secret.get_secret_value())
    return _encodable(secret)


Password = Annotated[SecretStr, Field(min_length=10, max_length=1000), AfterValidator(_typeable)]
# One that was accepted when other rules held must still be accepted here.
KnownPassword = Annotated[SecretStr, Field(max_length=1000), AfterValidator(_encodable)]
Token = Annotated[str, Field(max_length=200)]


class SignUp(Body):
    model_config = example({"email": "ada@example.com", "password": "a long password", "tenant_name": "Acme"})

    email: EmailStr
    password: Password
    tenant_name: Name


class SignIn(Body):
    model_config = example({"email": "ada@example.com", "password": "a long password"})

    email: EmailStr
    password: KnownPassword


class Refresh(Body):
    model_config = example({"refresh_token": "easel_rt_…"})

    refresh_token: Token


class TokensView(BaseModel):
    """`expires_in`: seconds until the access token ends."""

    access_token: str
    refresh_token: str
    expires_in: int


class UserView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    name: str | None


class SignedUp(TokensView):
    user: UserView
    tenant: TenantView


class TenantRole(TenantView):
    """A tenant of the caller's, and their role in it."""

    role: Role


class Me(BaseModel):
    """`tenant` and `role` are null where the caller belongs to several tenants and `X-Tenant-Id` names none."""

    user: UserView
    tenant: TenantView | None
    role: Role | None
    scopes: list[str] | None
    tenants: list[TenantRole]

    @classmethod
    def of(cls, caller: Caller, tenant_id: UUID | None) -> Self:
        """Raises NotFound where the tenant is none of the caller's, Forbidden where it is suspended."""
        membership = caller.find_membership(tenant_id)
        actor = membership and caller.actor(membership)
        return cls(
            user=UserView(id=caller.user_id, email=caller.email, name=caller.name),
            tenant=membership and TenantView(id=membership.tenant_id, name=membership.name),
            role=actor and actor.role,
            scopes=None if caller.scopes is None else sorted(caller.scopes),
            tenants=[TenantRole(id=one.tenant_id, name=one.name, role=one.role) for one in caller.memberships],
        )


class UserChange(Body):
    model_config = example({"name": "Ada Lovelace"})

    name: Name


class UserErasure(Body):
    model_config = example({"password": "correct horse battery"})  # pragma: allowlist secret

    password: KnownPassword


class PasswordChange(Body):
    model_config = example({"current_password": "a long password", "new_password": "a longer password"})

    current_password: KnownPassword
    new_password: Password


class PasswordResetRequest(Body):
    model_config = example({"email": "ada@example.com"})

    email: EmailStr


class NewPassword(Body):
    model_config = example({"token": "easel_pr_…", "new_password": "a longer password"})

    token: Token
    new_password: Password


class SignInView(BaseModel):
    """`current`: the one whose token makes this request."""

    id: UUID
    created_at: datetime
    last_used_at: datetime | None
    user_agent: str | None
    current: bool


class SignInPage(Page[SignInView]):
    pass


class Acceptance(Body):
    """`password` and `name` are for a new account."""

    model_config = example({"token": "easel_iv_…", "password": "a long password", "name": "Grace Hopper"})

    token: Token
    password: Password | None = None
    name: Name | None = None


class Joined(BaseModel):
    tenant: TenantView
    role: Role


class JoinedAndSignedIn(Joined, TokensView):
    """A new account is signed in at once."""
