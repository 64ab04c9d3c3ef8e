"""Tenants, users, memberships, and their credentials (hashes only)."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import ForeignKey, ForeignKeyConstraint, LargeBinary, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, EnumText, Identified, now


class Role(StrEnum):
    """What a member may do, least first."""

    VIEWER = "viewer"
    MEMBER = "member"
    ADMIN = "admin"
    OWNER = "owner"

    def covers(self, other: "Role") -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


class TokenKind(StrEnum):
    ACCESS = "access"
    REFRESH = "refresh"


class Tenant(Identified, Base):
    __tablename__ = "tenants"

    name: Mapped[str]
    plan: Mapped[str] = mapped_column(ForeignKey("plans.name"), default="unlimited", server_default="unlimited")
    retention_days: Mapped[int | None]
    suspended_at: Mapped[datetime | None]


class User(Identified, Base):
    """A user; `email` is kept in lower case, `name` is what other members see."""

    __tablename__ = "users"

    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str | None]
    password_hash: Mapped[str]
    disabled_at: Mapped[datetime | None]


class Membership(Base):
    __tablename__ = "memberships"

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True)
    role: Mapped[Role] = mapped_column(EnumText(Role))
    created_at: Mapped[datetime] = mapped_column(default=now)


class ApiKey(Identified, Base):
    """A tenant's key; it acts as the user who made it. Null `scopes` means all of that user's rights.

    `hint` is the last four characters of its secret.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        UniqueConstraint("tenant_id", "id"),
        ForeignKeyConstraint(
            ["tenant_id", "user_id"], ["memberships.tenant_id", "memberships.user_id"], ondelete="CASCADE"
        ),
    )

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    user_id: Mapped[UUID]
    name: Mapped[str]
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    hint: Mapped[str]
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class SignIn(Identified, Base):
    """One sign-in of a user, on one device; no token of it is good once it has ended."""

    __tablename__ = "sign_ins"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    user_agent: Mapped[str | None]
    last_used_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Token(Identified, Base):
    """An access or refresh token; all that follow from one sign-in share `sign_in_id`."""

    __tablename__ = "tokens"

    sign_in_id: Mapped[UUID] = mapped_column(ForeignKey("sign_ins.id", ondelete="CASCADE"), index=True)
    kind: Mapped[TokenKind] = mapped_column(EnumText(TokenKind))
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    expires_at: Mapped[datetime] = mapped_column(index=True)
    used_at: Mapped[datetime | None]


class Invitation(Identified, Base):
    """An address that may join a tenant; accepted or revoked, the row is gone."""

    __tablename__ = "invitations"
    __table_args__ = (UniqueConstraint("tenant_id", "id"), UniqueConstraint("tenant_id", "email"))

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    email: Mapped[str]
    role: Mapped[Role] = mapped_column(EnumText(Role))
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    expires_at: Mapped[datetime]


class PasswordReset(Identified, Base):
    """A user's last request for a new password; used, the row is gone."""

    __tablename__ = "password_resets"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), unique=True)
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    expires_at: Mapped[datetime]


class AttemptCount(Base):
    """How often a secret was guessed; `subject` is a hash of whose, and of where the guesses came from."""

    __tablename__ = "attempt_counts"

    subject: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    count: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(index=True)
