"""The worker's tasks that send mail; a mail server that does not take one is asked again, less and less often."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from docket import TaskKey
from sqlalchemy.exc import SQLAlchemyError

from app.db import now
from app.errors import CONNECTION_FAULTS
from app.identity import mails
from app.mail import MailError, MailRefused, open_mailer
from app.worker.context import WorkerContext

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=2), timedelta(minutes=20)
INVITATION_PATIENCE = timedelta(hours=4)
RESET_PATIENCE = mails.RESET_LIFETIME
# What another attempt may overcome.
FAULTS = (*CONNECTION_FAULTS, MailError, SQLAlchemyError)


@dataclass(frozen=True)
class Attempt:
    """To execute `task` with `arguments`; `number` counts from 1, `key` is the task's own."""

    task: str
    arguments: tuple[str, ...]
    key: str
    number: int
    patience: timedelta

    @property
    def pause(self) -> timedelta | None:
        """Until the next attempt; None where that would begin later than `patience` after the first."""
        pauses = [min(FIRST_PAUSE * 2**earlier, LONGEST_PAUSE) for earlier in range(self.number)]
        return pauses[-1] if sum(pauses, timedelta()) <= self.patience else None

    @property
    def next_key(self) -> str:
        """Told from the key: an attempt that is delivered twice has one successor."""
        kind, of = self.key.split(":")[:2]
        return f"{kind}:{of}:{self.number + 1}"


def mail_tasks(ctx: WorkerContext) -> list[Callable[..., Awaitable[None]]]:
    mailer = open_mailer(ctx.settings)

    async def send_invitation(tenant_id: str, invitation_id: str, number: int = 1, key: str = TaskKey()) -> None:
        facts = {"tenant_id": tenant_id, "invitation_id": invitation_id}
        if mailer is None:
            log.warning("mail.not_sent", extra={**facts, "reason": "SMTP_URL is not set"})
            return
        attempt = Attempt(mails.SEND_INVITATION, (tenant_id, invitation_id), key, number, INVITATION_PATIENCE)
        sending = mails.send_invitation(ctx.database, mailer, ctx.settings, UUID(tenant_id), UUID(invitation_id))
        await _send(ctx, attempt, sending, {**facts, "kind": "invitation"})

    async def send_password_reset(email: str, number: int = 1, key: str = TaskKey()) -> None:
        if mailer is not None:
            attempt = Attempt(mails.SEND_RESET, (email,), key, number, RESET_PATIENCE)
            sending = mails.send_reset(ctx.database, mailer, ctx.settings, email)
            await _send(ctx, attempt, sending, {"kind": "password_reset"})

    return [send_invitation, send_password_reset]


async def _send(ctx: WorkerContext, attempt: Attempt, sending: Awaitable[None], facts: dict[str, str]) -> None:
    """Await `sending`; where it fails, schedule the next attempt. The log gets neither addresses nor tokens."""
    try:
        await sending
    except FAULTS as error:
        cause = error.cause if isinstance(error, MailError) else type(error).__name__
        fields = {**facts, "attempt": attempt.number, "error": cause}
        if attempt.pause is None or isinstance(error, MailRefused):
            log.error("mail.given_up", extra=fields)
            return
        due = now() + attempt.pause
        await ctx.broker.enqueue(attempt.task, *attempt.arguments, attempt.number + 1, key=attempt.next_key, when=due)
        log.warning("mail.postponed", extra={**fields, "seconds": attempt.pause.total_seconds()})
