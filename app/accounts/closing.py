"""A user who wants to be erased."""

from sqlalchemy import delete, select, update

from app.accounts import passwords, sign_ins
from app.broker import Broker
from app.db import Database, now
from app.erasure import service as erasure
from app.erasure.schemas import ErasureRequested
from app.errors import Unauthenticated
from app.identity.models import PasswordReset, User
from app.identity.service import NOT_SIGNED_IN, SignedIn
from app.settings import Settings


async def erase(
    database: Database, broker: Broker, settings: Settings, caller: SignedIn, *, password: str
) -> ErasureRequested:
    """Signed out everywhere with the commit, and erased soon after.

    Raises Forbidden (WRONG_PASSWORD), TooManyAttempts, Conflict for a tenant's last owner.
    """
    attempts, stored = await passwords.require_current(database, caller, password)
    async with database.identity() as session:
        unchanged = select(User.id).where(
            User.id == caller.user_id, User.password_hash == stored, User.disabled_at.is_(None)
        )
        if await session.scalar(unchanged.with_for_update(key_share=True)) is None:
            # Another request was first.
            raise Unauthenticated(NOT_SIGNED_IN)
        await attempts.succeed(session)
        await sign_ins.end_all(session, caller.user_id)
        await session.execute(update(User).where(User.id == caller.user_id).values(disabled_at=now()))
        await session.execute(delete(PasswordReset).where(PasswordReset.user_id == caller.user_id))
        return await erasure.erase_user(session, broker, settings, caller.user_id)
