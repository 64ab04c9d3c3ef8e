"""Which passwords are accepted, changing one, and resetting one by mail."""

import asyncio
from functools import cache

from sqlalchemy import delete, select, update

from app.accounts import sign_ins
from app.broker import Broker
from app.db import Database, now, uuid7
from app.error_codes import ErrorCode
from app.errors import Forbidden, Invalid, NotFound, Unavailable
from app.identity import audit, credentials
from app.identity.attempts import Attempts
from app.identity.audit import Action, Author
from app.identity.mails import SEND_RESET
from app.identity.models import PasswordReset, User
from app.identity.service import SignedIn
from app.loading import load
from app.settings import Settings

MIN_CHARACTERS = 10
TRY_ANOTHER = "choose another one"
MISMATCH = "The current password is wrong."


async def check_new(password: str, email: str, *, field: str = "password") -> None:
    """Raises Invalid for what others guess first; otherwise any ten characters will do (OWASP ASVS 5, 6.2.4, 6.2.5)."""
    guessed = password.strip().lower()
    if guessed in await asyncio.to_thread(_common_passwords):
        fault = f"this password is one of the most common ones: {TRY_ANOTHER}"
    elif guessed in (email.lower(), email.lower().partition("@")[0]):
        fault = f"the password is the e-mail address: {TRY_ANOTHER}"
    else:
        return
    raise Invalid(f"{field}: {fault}.", errors=[{"field": field, "message": fault, "given": "(hidden)"}])


@cache
def _common_passwords() -> frozenset[str]:
    """Common passwords, words and names as long as a password must be: zxcvbn's lists."""
    lists = load("zxcvbn.frequency_lists").FREQUENCY_LISTS
    return frozenset(word for words in lists.values() for word in words if len(word) >= MIN_CHARACTERS)


async def change(database: Database, caller: SignedIn, *, current: str, new: str) -> None:
    """The user's other sign-ins end. Raises Forbidden (WRONG_PASSWORD), TooManyAttempts, Invalid."""
    await check_new(new, caller.email, field="new_password")
    attempts, stored = await require_current(database, caller, current)
    hashed = await credentials.hash_password(new)
    async with database.identity() as session:
        changed = await session.execute(
            update(User)
            .where(User.id == caller.user_id, User.password_hash == stored)
            .values(password_hash=hashed)
            .returning(User.id)
        )
        if changed.one_or_none() is None:  # another request has just changed it
            raise Forbidden(MISMATCH, code=ErrorCode.WRONG_PASSWORD)
        await attempts.succeed(session)
        await sign_ins.end_all(session, caller.user_id, but=caller.sign_in_id)
        await audit.record_of_user(session, caller.user_id, Author.user(caller.user_id), Action.PASSWORD_CHANGED)


async def require_current(database: Database, caller: SignedIn, password: str) -> tuple[Attempts, str | None]:
    """The caller's own password, counted as a guess until the attempt is told to have succeeded; its hash.

    Raises Forbidden (WRONG_PASSWORD), TooManyAttempts.
    """
    attempts = Attempts.at(caller.email)
    async with database.identity() as session:
        await attempts.count(session)
        stored = await session.scalar(select(User.password_hash).where(User.id == caller.user_id))
    if not await credentials.verify_password(password, stored):
        raise Forbidden(MISMATCH, code=ErrorCode.WRONG_PASSWORD)
    return attempts, stored


async def request_reset(database: Database, settings: Settings, broker: Broker, email: str) -> None:
    """Have a mail sent, where the address has an account: the worker looks, so that no caller can tell by the time.

    Raises Unavailable (MAIL_UNAVAILABLE) and TooManyAttempts.
    """
    if not settings.mail_configured:
        raise Unavailable(
            "This service sends no mail: ask whoever runs it for a new password.", code=ErrorCode.MAIL_UNAVAILABLE
        )
    async with database.identity() as session:
        await Attempts.at(email.lower()).count(session)
    await broker.enqueue(SEND_RESET, email.lower(), key=f"password_reset:{uuid7()}")


async def reset(database: Database, token: str, *, new: str) -> None:
    """Trade a token from a mail for a new password; every sign-in ends. Raises NotFound, TooManyAttempts, Invalid."""
    attempts = Attempts.with_token()
    valid = select(User.id, User.email).join(PasswordReset, PasswordReset.user_id == User.id)
    valid = valid.where(PasswordReset.secret_hash == credentials.fingerprint(token), PasswordReset.expires_at > now())
    async with database.identity() as session:
        await attempts.count(session)
        user = (await session.execute(valid.where(User.disabled_at.is_(None)))).one_or_none()
    if user is None:
        raise NotFound("password reset")
    await check_new(new, user.email, field="new_password")
    hashed = await credentials.hash_password(new)
    async with database.identity() as session:
        # The user before the token, as `make_reset` has it: two at once do not wait for each other.
        await session.execute(select(User.id).where(User.id == user.id).with_for_update(key_share=True))
        used = await session.execute(
            delete(PasswordReset)
            .where(PasswordReset.secret_hash == credentials.fingerprint(token))
            .returning(PasswordReset.user_id)
        )
        if used.one_or_none() is None:
            raise NotFound("password reset")
        await session.execute(update(User).where(User.id == user.id).values(password_hash=hashed))
        await attempts.succeed(session)
        await sign_ins.end_all(session, user.id)
        await audit.record_of_user(session, user.id, Author.user(user.id), Action.PASSWORD_CHANGED)
