"""Sign-up, tokens, keys and the caller's own page, on the wire."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, EmailStr, Field, JsonValue, SecretStr

from app.bodies import Body, not_blank
from app.identity.models import Role
from app.identity.service import SCOPES
from app.paging import Page

Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(not_blank)]
Password = Annotated[SecretStr, Field(min_length=10, max_length=1000)]


def _known_scope(scope: str) -> str:
    if scope not in SCOPES:
        raise ValueError(f"unknown scope; allowed are {', '.join(SCOPES)}")
    return scope


def _example(fields: dict[str, JsonValue]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class SignUp(Body):
    model_config = _example({"email": "ada@example.com", "password": "a long password", "tenant_name": "Acme"})

    email: EmailStr
    password: Password
    tenant_name: Name


class SignIn(Body):
    model_config = _example({"email": "ada@example.com", "password": "a long password"})

    email: EmailStr
    password: Password


class Refresh(Body):
    model_config = _example({"refresh_token": "easel_rt_…"})

    refresh_token: Annotated[str, Field(max_length=200)]


class TokensView(BaseModel):
    """`expires_in`: seconds until the access token ends."""

    access_token: str
    refresh_token: str
    expires_in: int


class UserView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str


class TenantView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str


class SignedUp(TokensView):
    user: UserView
    tenant: TenantView


class Me(BaseModel):
    user: UserView
    tenant: TenantView
    role: Role
    scopes: list[str] | None


class NewApiKey(Body):
    model_config = _example({"name": "Gallery", "scopes": ["attachments:read"]})

    name: Name
    scopes: Annotated[list[Annotated[str, AfterValidator(_known_scope)]], Field(max_length=len(SCOPES))] | None = None
    expires_at: AwareDatetime | None = None


class ApiKeyView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    scopes: list[str] | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class ApiKeyPage(Page[ApiKeyView]):
    pass


class ApiKeyMade(ApiKeyView):
    """`key` is shown this once."""

    key: str
