"""How often passwords and one-time tokens may be tried, counted in Postgres: every process and restart knows.

OWASP ASVS 5, 6.3.1: ten failures a minute from one place, a hundred an hour for one address from anywhere.
"""

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import case, delete, func, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import now
from app.errors import TooManyAttempts
from app.identity.models import AttemptCount
from app.request_context import current_request

MINUTE, PER_MINUTE = timedelta(minutes=1), 10
HOUR, PER_HOUR = timedelta(hours=1), 100


@dataclass(frozen=True)
class Attempts:
    """The attempts to be `whose`: an e-mail address, which need not exist, or a kind of token."""

    from_here: bytes
    from_anywhere: bytes | None

    @classmethod
    def at(cls, email: str) -> "Attempts":
        return cls(_subject("minute", email, current_request().network), _subject("hour", email))

    @classmethod
    def with_token(cls) -> "Attempts":
        """Of one-time tokens, which name no address: counted by where they come from."""
        return cls(_subject("minute", "a one-time token", current_request().network), None)

    async def count(self, session: AsyncSession) -> None:
        """Count one as failed before it is looked at, so that none of many at once slips through.

        Raises TooManyAttempts, and leaves the counts as they are then if the transaction ends with it.
        """
        starts = now()
        values = [{"subject": self.from_here, "count": 1, "expires_at": starts + MINUTE}]
        if self.from_anywhere is not None:
            values.append({"subject": self.from_anywhere, "count": 1, "expires_at": starts + HOUR})
        # In one order, so that two at once do not wait for each other.
        statement = insert(AttemptCount).values(sorted(values, key=lambda row: row["subject"]))
        over = AttemptCount.expires_at <= func.now()
        counted = await session.execute(
            statement.on_conflict_do_update(
                index_elements=[AttemptCount.subject],
                set_={
                    "count": case((over, 1), else_=AttemptCount.count + 1),
                    "expires_at": case((over, statement.excluded.expires_at), else_=AttemptCount.expires_at),
                },
            ).returning(AttemptCount.subject, AttemptCount.count.label("failures"), AttemptCount.expires_at)
        )
        allowed = {self.from_here: PER_MINUTE, self.from_anywhere: PER_HOUR}
        exceeded = [row.expires_at for row in counted if row.failures > allowed[row.subject]]
        if exceeded:
            raise TooManyAttempts((max(exceeded) - starts).total_seconds())

    async def succeed(self, session: AsyncSession) -> None:
        """The last one was no failure: it clears the minute, and takes itself back from the hour.

        Locks the counts in the order of `count`, and after the user: whoever has both asks for the user first.
        """
        for subject in sorted(filter(None, (self.from_here, self.from_anywhere))):
            same = AttemptCount.subject == subject
            if subject == self.from_here:
                await session.execute(delete(AttemptCount).where(same))
            else:
                one_less = func.greatest(AttemptCount.count - 1, 0)
                await session.execute(update(AttemptCount).where(same).values(count=one_less))


def _subject(*parts: str) -> bytes:
    """A hash: the table tells nobody who was tried."""
    return hashlib.sha256("\n".join(parts).encode()).digest()
