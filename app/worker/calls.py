"""A run's calls to the provider: what is committed around each of them, so that none is repeated or left unbooked."""

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from typing import Any

from app.errors import OverLimit
from app.provider.errors import ProviderError
from app.runs.models import Run
from app.runs.provider_objects import ProviderObjectKind
from app.usage.ledger import Cost, settle
from app.worker import held_run, lease
from app.worker.booking import Booking
from app.worker.call_book import CallBook
from app.worker.context import WorkerContext
from app.worker.image_rows import ImageRows
from app.worker.open_call import OpenCall
from app.worker.reservation import without_settled

log = logging.getLogger(__name__)

CANCEL_SECONDS = 5.0
# How long the next call may wait for the rows of the images that the last one brought.
ROWS_SECONDS = 5.0


class ProviderCalls:
    """Observes the calls of one attempt (a CallObserver); `resumed` is the response that an earlier one requested."""

    def __init__(self, ctx: WorkerContext, run: Run, book: CallBook, rows: ImageRows, resumed: str | None) -> None:
        # Whether the provider has accepted a request of this run, of this attempt or an earlier one.
        self.already_sent = resumed is not None
        # Cleared while a request is in flight whose response id is not known yet.
        self.no_request_in_flight = asyncio.Event()
        self.no_request_in_flight.set()
        # The response that was named last, committed with the end of the run at the latest.
        self.response_id = run.response_id
        # What the provider has kept for this run and no statement has recorded yet.
        self.kept: dict[str, ProviderObjectKind] = {}
        self.turn = run.calling_turn
        self.book = book
        self._ctx = ctx
        self._run = run
        self._rows = rows
        self._resumed = resumed
        self._opening: asyncio.Task[None] | None = None

    def take_resumed(self) -> str | None:
        response_id, self._resumed = self._resumed, None
        return response_id

    async def on_request(self, agent_key: str, *, background: bool, characters: int) -> None:
        """Committed before money is spent, so that a later attempt sees what was requested, and by which agent.

        The call before is settled with it. Raises OverLimit where the plan refuses what a further call may take.
        """
        book = self.book
        await self._rows.wait(ROWS_SECONDS)
        settlement = book.settlement()
        usage, cost = book.with_present(settlement)
        call = book.open(self.turn + 1, self._ctx.registry.specs[agent_key], characters)
        need = book.need_of(call)
        row = book.row_of(call, need, background=background)
        booking = Booking(call=row, settlement=settlement, need=need if self.turn else None)
        self.no_request_in_flight.clear()
        self._opening = asyncio.create_task(self._open(booking, call, usage, cost, background=background))
        try:
            # Who is stopped meanwhile sends nothing, though the call may be written down.
            await asyncio.shield(self._opening)
        except OverLimit:
            self.no_request_in_flight.set()
            raise

    async def _open(
        self, booking: Booking, call: OpenCall, usage: Counter[str], cost: Cost, *, background: bool
    ) -> None:
        await self._write(
            booking,
            calling_turn=call.number,
            calling_agent=call.agent_key,
            background=background,
            response_id=None,
            usage=dict(usage) or None,
            booked_nano=cost.nano,
            booked_basis=cost.basis,
            **without_settled(self._run, booking.settlement),
        )
        self.turn, self.response_id, self._run.background = call.number, None, background
        self._run.calling_agent = call.agent_key
        # Until it is sent.
        call.refused = True
        self.book.call, self.book.usage, self.book.cost = call, usage, cost

    async def until_opened(self) -> None:
        """Until the call that was being written down is, or is not."""
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)

    async def on_response_created(self, response_id: str) -> None:
        self.already_sent = True
        self.response_id = response_id
        self.kept[response_id] = ProviderObjectKind.RESPONSE
        if (call := self.book.call) is not None:
            call.response_id = response_id
            if self._run.background or call.estimate.image_model:
                # What was paid for is resumed, and its images are recovered, by this id alone.
                await self._write(Booking(named=(call.number, response_id)), response_id=response_id)
        self.no_request_in_flight.set()

    async def upload_image(self, filename: str, data: bytes, mime_type: str) -> str:
        file_id = await self._ctx.provider.upload_image(filename, data, mime_type)
        self.kept[file_id] = ProviderObjectKind.FILE
        return file_id

    @property
    def resumable(self) -> bool:
        """Whether another attempt could resume the provider's response."""
        return self._run.background and self.response_id is not None and self.no_request_in_flight.is_set()

    @property
    def awaits_name(self) -> bool:
        """Whether a request is on its way that the provider has not named: nobody could stop, resume or delete it."""
        call = self.book.call
        return call is not None and not (call.refused or call.ended or call.response_id)

    @property
    def is_lost(self) -> bool:
        """Whether an earlier attempt has sent a request that cannot be resumed, and this one has sent none."""
        return 0 < self.turn == self._run.calling_turn and not self.already_sent

    async def release(self) -> None:
        """Let another worker claim the run; what this one knows of its call is written down."""
        await self.until_opened()
        call, run, changes = self.book.call, self._run, dict[str, Any]()
        # Nothing was accepted yet: the next attempt makes the first call again.
        starts_again = call is not None and call.refused and call.number == 1
        settlement = self.book.settlement() if call and (call.refused or call.ended) and not starts_again else None
        named = (call.number, call.response_id) if call and call.response_id and settlement is None else None
        if settlement is not None:
            usage, cost = self.book.with_present(settlement)
            changes = {"usage": dict(usage) or None, "booked_nano": cost.nano, "booked_basis": cost.basis}
            changes |= without_settled(run, settlement)
        # Which call the response answers, whatever was written down last.
        changes |= {"calling_turn": 0 if starts_again else self.turn, "response_id": self.response_id}
        changes |= {"calling_agent": run.calling_agent, "background": run.background}
        await lease.release(self._ctx.database, run, Booking(self.kept, named=named, settlement=settlement), **changes)

    async def lose(self) -> None:
        """This worker holds the run no more: what it knows alone is recorded, to be deleted at the provider."""
        await self.until_opened()
        database, run = self._ctx.database, self._run
        if self.kept:
            await held_run.write(database, run, Booking(self.kept), attempt=run.attempt)
        found = await lease.look(database, run)
        if found is None or found.response_id != self.response_id:
            await self.cancel()
        # Of a run that is deleted no other attempt will.
        if found is None and (settlement := self.book.settlement()):
            async with database.tenant(run.tenant_id) as session:
                await settle(session, settlement)

    async def cancel(self) -> None:
        """Stop a response that the provider would finish, and charge for, without a reader."""
        call = self.book.call
        if call is None or call.ended or call.report or not (self._run.background and self.response_id):
            return
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                call.read(await self._ctx.provider.stored.stop(self.response_id))
        except (ProviderError, TimeoutError) as error:
            log.warning("run.provider_not_stopped", extra={"error": str(error)})

    async def _write(self, booking: Booking, **values: Any) -> None:
        kept = dict(self.kept)
        is_held = await held_run.write(self._ctx.database, self._run, replace(booking, kept=kept), **values)
        self.kept = {provider_id: kind for provider_id, kind in self.kept.items() if provider_id not in kept}
        if not is_held:
            raise lease.LeaseLost
