"""The mails that Easel sends: invitations and password resets. Their tokens are in no task and no log."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from uuid import UUID

from sqlalchemy import delete, select

from app import EaselError
from app.db import Database, now
from app.identity import audit, credentials
from app.identity.audit import Action, Author
from app.identity.models import Invitation, PasswordReset, Tenant, User
from app.mail import Mailer, new_message
from app.settings import Settings

log = logging.getLogger(__name__)

SEND_INVITATION = "send_invitation"
SEND_RESET = "send_password_reset"
"""The worker's tasks."""
RESET_LIFETIME = timedelta(hours=1)
# Of the front end.
INVITATION_PAGE = "invitation"
RESET_PAGE = "password-reset"
PURPOSES = {INVITATION_PAGE: "invitations", RESET_PAGE: "new passwords"}
"""What the pages are for."""


class NoAccount(EaselError):
    """No enabled user has the address."""


async def send_invitation(
    database: Database, mailer: Mailer, settings: Settings, tenant_id: UUID, invitation_id: UUID
) -> None:
    """Raises MailError; nothing happens where the invitation is used, revoked, replaced or expired."""
    async with database.tenant(tenant_id) as session:
        row = await session.scalar(select(Invitation).where(Invitation.id == invitation_id))
        tenant_name = await session.scalar(select(Tenant.name))
    if row is None or row.expires_at <= now():
        return
    facts = {"tenant_id": str(tenant_id), "invitation_id": str(row.id)}
    secrets = [credentials.derived(key, credentials.INVITATION_PREFIX, str(row.id)) for key in settings.signing_keys()]
    token = next((one for one in secrets if credentials.fingerprint(one) == row.secret_hash), None)
    if token is None:
        log.warning("mail.dropped", extra={**facts, "reason": "its SECRET_KEY is gone"})
        return
    text = f"You are invited to join {_one_line(tenant_name or '')} as {row.role}. The invitation is good for 7 days."
    await mailer.send(_message(settings, row.email, "You are invited", text, INVITATION_PAGE, token))
    log.info("mail.sent", extra={**facts, "kind": "invitation"})


@dataclass(frozen=True)
class Reset:
    """The token of a password reset; `link` is None where no address of a front end is known."""

    email: str
    expires_at: datetime
    token: str
    link: str | None


async def make_reset(database: Database, settings: Settings, email: str, *, by: Author | None = None) -> Reset:
    """It replaces an earlier one, and is in the audit log as issued `by` somebody else. Raises NoAccount."""
    token, expires_at = credentials.new_secret(credentials.RESET_PREFIX), now() + RESET_LIFETIME
    async with database.identity() as session:
        enabled = select(User.id).where(User.email == email.lower(), User.disabled_at.is_(None))
        # Of many at once, each replaces the one before it.
        user_id = await session.scalar(enabled.with_for_update(key_share=True))
        if user_id is None:
            raise NoAccount(f"There is no user {email}, or they are disabled.")
        await session.execute(delete(PasswordReset).where(PasswordReset.user_id == user_id))
        session.add(PasswordReset(user_id=user_id, secret_hash=credentials.fingerprint(token), expires_at=expires_at))
        if by is not None:
            await session.flush()
            await audit.record_of_user(session, user_id, by, Action.PASSWORD_RESET_ISSUED)
    return Reset(email.lower(), expires_at, token, _link(settings, RESET_PAGE, token))


async def send_reset(database: Database, mailer: Mailer, settings: Settings, email: str) -> None:
    """Make the reset and mail its token, where the address has an account. Raises MailError."""
    try:
        reset = await make_reset(database, settings, email)
    except NoAccount:
        return
    text = (
        "Somebody, probably you, asked for a new password. You can set it once, within one hour.\n"
        "If it was not you, there is nothing to do."
    )
    await mailer.send(_message(settings, email, "Your new password", text, RESET_PAGE, reset.token))
    log.info("mail.sent", extra={"kind": "password_reset"})


def _link(settings: Settings, page: str, token: str) -> str | None:
    """To a page of the front end; the token is in the fragment, which no server's log gets to see."""
    base = settings.front_end_url or settings.public_url
    return f"{base}/{page}#token={token}" if base else None


def _message(settings: Settings, to: str, subject: str, text: str, page: str, token: str) -> EmailMessage:
    link = _link(settings, page, token)
    if link is None:
        way = f"Open the app's page for {PURPOSES[page]} and enter this token there:\n\n{token}"
    else:
        way = f"{link}\n\nThe token alone: {token}"
    return new_message(settings.mail_from, to, subject, f"{text}\n\n{way}\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:100]
