"""The mails that Easel sends: invitations and password resets. Their tokens are in no task and no log."""

import logging
from datetime import timedelta
from email.message import EmailMessage
from uuid import UUID

from sqlalchemy import delete, select

from app.db import Database, now
from app.identity import credentials
from app.identity.models import Invitation, PasswordReset, Tenant, User
from app.mail import Mailer
from app.settings import Settings

log = logging.getLogger(__name__)

SEND_INVITATION = "send_invitation"
SEND_RESET = "send_password_reset"
"""The worker's tasks."""
RESET_LIFETIME = timedelta(hours=1)


async def send_invitation(
    database: Database, mailer: Mailer, settings: Settings, tenant_id: UUID, invitation_id: UUID
) -> None:
    """Raises MailError; nothing happens where the invitation is used, revoked or replaced."""
    async with database.tenant(tenant_id) as session:
        row = await session.scalar(select(Invitation).where(Invitation.id == invitation_id))
        tenant_name = await session.scalar(select(Tenant.name))
    if row is None:
        return
    secrets = [credentials.derived(key, credentials.INVITATION_PREFIX, str(row.id)) for key in settings.signing_keys()]
    token = next((one for one in secrets if credentials.fingerprint(one) == row.secret_hash), None)
    if token is None:
        log.warning("mail.dropped", extra={"reason": "its SECRET_KEY is gone", "invitation_id": str(row.id)})
        return
    text = f"You are invited to join {_one_line(tenant_name or '')} as {row.role}. The invitation is good for 7 days."
    await mailer.send(_letter(settings, row.email, "You are invited", text, "invitation", token))
    log.info("mail.sent", extra={"kind": "invitation", "invitation_id": str(row.id)})


async def send_reset(database: Database, mailer: Mailer, settings: Settings, email: str) -> None:
    """Make the reset and mail its token, where the address has an account. Raises MailError."""
    async with database.identity() as session:
        enabled = select(User.id).where(User.email == email, User.disabled_at.is_(None))
        user_id = await session.scalar(enabled)
        if user_id is None:
            return
        token = credentials.new_secret(credentials.RESET_PREFIX)
        await session.execute(delete(PasswordReset).where(PasswordReset.user_id == user_id))
        session.add(
            PasswordReset(
                user_id=user_id, secret_hash=credentials.fingerprint(token), expires_at=now() + RESET_LIFETIME
            )
        )
    text = "Somebody, probably you, asked for a new password. If it was not you, there is nothing to do."
    await mailer.send(_letter(settings, email, "Your new password", text, "password-reset", token))
    log.info("mail.sent", extra={"kind": "password_reset", "user_id": str(user_id)})


def link(settings: Settings, page: str, token: str) -> str | None:
    """To a page of the front end; the token is in the fragment, which no server's log gets to see."""
    base = settings.front_end_url or settings.public_url
    return f"{base}/{page}#token={token}" if base else None


def _letter(settings: Settings, to: str, subject: str, text: str, page: str, token: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = settings.mail_from, to, subject
    message.set_content(f"{text}\n\n{link(settings, page, token) or ''}\n\nThe token alone: {token}\n")
    return message


def _one_line(text: str) -> str:
    return " ".join(text.split())[:100]
