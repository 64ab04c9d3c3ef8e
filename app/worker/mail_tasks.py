"""The worker's tasks that send mail; a mail server that does not answer is asked again for an hour."""

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from docket import ExponentialRetry

from app.identity import mails
from app.mail import open_mailer
from app.worker.context import WorkerContext

log = logging.getLogger(__name__)

ATTEMPTS = 9
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=2), timedelta(minutes=20)


def mail_tasks(ctx: WorkerContext) -> list[Callable[..., Awaitable[None]]]:
    mailer = open_mailer(ctx.settings)

    def retry() -> ExponentialRetry:
        return ExponentialRetry(attempts=ATTEMPTS, minimum_delay=FIRST_PAUSE, maximum_delay=LONGEST_PAUSE)

    async def send_invitation(tenant_id: str, invitation_id: str, retry: ExponentialRetry = retry()) -> None:  # noqa: B008
        if mailer is None:
            facts = {"tenant_id": tenant_id, "invitation_id": invitation_id}
            log.warning("mail.not_sent", extra={**facts, "reason": "SMTP_URL is not set"})
            return
        await mails.send_invitation(ctx.database, mailer, ctx.settings, UUID(tenant_id), UUID(invitation_id))

    async def send_password_reset(email: str, retry: ExponentialRetry = retry()) -> None:  # noqa: B008
        if mailer is not None:
            await mails.send_reset(ctx.database, mailer, ctx.settings, email)

    return [send_invitation, send_password_reset]
