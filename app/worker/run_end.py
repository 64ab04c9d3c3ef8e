"""The end of a run: its message, its images and what it used, committed at once, then told."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.attributes import set_committed_value

from app import metrics
from app.attachments import service as attachments
from app.attachments.models import Attachment
from app.db import retry_while_unavailable
from app.errors import is_connection_error
from app.inserts import insert_many
from app.runs.events import MessageCompleted, run_ended
from app.runs.models import Run, RunError, RunStatus
from app.runs.run_log import log_end
from app.runs.schemas import RunView
from app.usage.ledger import cost_without_image
from app.worker import held_run
from app.worker.booking import Booking
from app.worker.calls import ProviderCalls
from app.worker.context import WorkerContext
from app.worker.errors import cause_of, to_run_error
from app.worker.event_writer import EventWriter
from app.worker.held_run import Ended, Ending
from app.worker.images import RunImages
from app.worker.lease import LeaseLost
from app.worker.translator import Translator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    status: RunStatus
    error: RunError | None = None
    # What `error` was made of.
    exception: BaseException | None = None

    @classmethod
    def failed(cls, exception: BaseException) -> "Outcome":
        return cls(RunStatus.FAILED, to_run_error(exception), exception)


@dataclass(frozen=True)
class RunEnd:
    """Of one attempt at a run."""

    ctx: WorkerContext
    run: Run
    events: EventWriter
    calls: ProviderCalls
    images: RunImages
    translator: Translator

    async def write(self, outcome: Outcome) -> Ended:
        """Raises LeaseLost."""
        ended, rows = await self._commit(outcome)
        if ended is None:
            raise LeaseLost
        self._count(ended.run)
        self.events.emit(MessageCompleted.of(ended.message, rows, ended.run))
        self.events.emit(run_ended(RunView.model_validate(ended.run)))
        log_end(ended.run, self.ctx.registry, rows, cause_of(outcome.exception), outcome.exception)
        return ended

    def _count(self, run: Run) -> None:
        metrics.run_ended(run.agent_key, run.status, run.error.code if run.error else "")
        if run.started_at is not None and run.finished_at is not None:
            metrics.run_took(run.agent_key, run.started_at, run.finished_at)
        # A later attempt does not know when the first one had output.
        if run.attempt == 1 and self.translator.first_output_at is not None:
            metrics.run_had_output(run.created_at, self.translator.first_output_at)

    @retry_while_unavailable
    async def _commit(self, outcome: Outcome) -> tuple[Ended | None, list[Attachment]]:
        async with self.ctx.database.tenant(self.run.tenant_id) as session:
            rows = self.images.rows.know(await self._images(session))
            self.images.reports.tell_copies(rows)
            failed = self.images.reports.failed_rows()
            ending = self._ending(outcome, [*rows, *failed])
            ended = await held_run.end(session, self.run, ending)
            ending.booking.show_costs(rows)
            if ended is not None and not ended.repeated:
                failed = await _record_failed(session, failed)
                await _charge_late(session, rows)
            by_id = {row.id: row for row in [*rows, *failed]}
            return ended, [by_id[object_id] for object_id in sorted(by_id)]

    async def _images(self, session: AsyncSession) -> list[Attachment]:
        """None are looked for where no attempt can have stored one."""
        if not self.images.received and self.run.attempt == 1:
            return []
        found = await attachments.of_messages(session, [self.run.output_message_id])
        return found.get(self.run.output_message_id, [])

    def _ending(self, outcome: Outcome, rows: Sequence[Attachment]) -> Ending:
        self.translator.finish_text()
        self.translator.start_message()
        settlement = self.calls.book.settlement()
        usage, cost = self.calls.book.with_present(settlement)
        return Ending(
            status=outcome.status,
            text=str(self.translator.message),
            image_places=self.translator.message.image_places(rows),
            last_seq=self.events.seq + 2,
            usage=dict(usage),
            cost=cost,
            response_id=self.calls.response_id,
            error=outcome.error,
            unrecorded_images=sorted(self.images.unrecorded),
            booking=Booking(self.calls.kept, settlement=settlement),
        )


async def _record_failed(session: AsyncSession, images: Sequence[Attachment]) -> Sequence[Attachment]:
    """What kept an image's row from being written may keep this one from it, too: the run ends all the same."""
    if images:
        try:
            async with session.begin_nested():
                for image in images:
                    await _charge(session, image)
                await insert_many(session, images)
        except DBAPIError as error:
            if is_connection_error(error):
                raise
            log.exception("image.failure_not_recorded")
            return ()
    return images


async def _charge(session: AsyncSession, image: Attachment) -> None:
    """The provider may have drawn and reported it, though no bytes of it are here."""
    if image.run_id is not None and image.tool_call_id is not None:
        cost = await cost_without_image(session, image.run_id, image.tool_call_id)
        set_committed_value(image, "cost_nano", cost.nano)
        set_committed_value(image, "cost_basis", cost.basis)


async def _charge_late(session: AsyncSession, images: Sequence[Attachment]) -> None:
    """Their rows may have come after their calls were settled; of two of one tool call, the first shows the cost."""
    shown = {image.tool_call_id for image in images if image.cost_basis is not None}
    for image in images:
        if image.tool_call_id in shown:
            continue
        await _charge(session, image)
        if image.cost_basis is not None:
            shown.add(image.tool_call_id)
            costs = {"cost_nano": image.cost_nano, "cost_basis": image.cost_basis}
            await session.execute(update(Attachment).where(Attachment.id == image.id).values(costs))
