"""Deleting credentials and counts that have expired: nothing looks for them any more."""

from datetime import timedelta

from sqlalchemy import delete, exists, func

from app.db import Database, now
from app.identity.models import AttemptCount, Invitation, PasswordReset, SignIn, Token

# So long an expired invitation is still listed, so that who sent it sees why nobody came.
INVITATIONS_KEPT = timedelta(days=30)


async def delete_expired(database: Database) -> None:
    async with database.identity() as session:
        await session.execute(delete(Token).where(Token.expires_at < func.now()))
        has_tokens = exists().where(Token.sign_in_id == SignIn.id)
        await session.execute(delete(SignIn).where(~has_tokens))
        for credential in (AttemptCount, PasswordReset):
            await session.execute(delete(credential).where(credential.expires_at < func.now()))
        await session.execute(delete(Invitation).where(Invitation.expires_at < now() - INVITATIONS_KEPT))
