"""What the calls of one attempt have used so far, and what is booked as each of them ends."""

from collections import Counter
from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import select

from app.agents._shared.registry import LoadedAgent
from app.agents._shared.tools import IMAGE_TOOL
from app.attachments.models import Attachment
from app.db import Database, now
from app.event_log import Record
from app.provider.observers import GeneratedImage, PartialImage
from app.provider.usage import ResponseReport
from app.runs.models import Run
from app.usage.estimates import CallEstimate
from app.usage.ledger import Cost, Settlement
from app.usage.models import CallState, ProviderCall, UsageEntry
from app.usage.prices import Prices
from app.worker.image_options import ImageOptions
from app.worker.image_rows import ImageRows
from app.worker.open_call import OpenCall, usage_of
from app.worker.received import recall
from app.worker.reservation import Need, is_reserved


class CallBook:
    """A CallMeter of the present call, `call`; `usage` and `cost` are those of the calls before it."""

    def __init__(
        self,
        run: Run,
        prices: Prices,
        options: ImageOptions,
        object_ids: Mapping[str, UUID],
        unsettled: OpenCall | None,
    ) -> None:
        """`object_ids` are by tool call; `unsettled` is the call that an earlier attempt has left."""
        # An earlier attempt's are counted there.
        self.usage: Counter[str] = Counter(run.usage or {})
        self.cost = Cost(run.booked_nano, run.booked_basis)
        self.call = unsettled
        # The tokens of the pictures that the run's request gives.
        self.given_tokens = 0
        self._run = run
        self._prices = prices
        self._options = options
        self._object_ids = object_ids

    def open(self, number: int, agent: LoadedAgent, characters: int) -> OpenCall:
        """A call that is about to be sent; it is the present one once that is committed."""
        model = None
        if IMAGE_TOOL in agent.spec.tool_keys and IMAGE_TOOL not in self._run.without:
            model = self._options(agent.spec.key).get("model") or self._prices.default_image_model
        estimate = CallEstimate(agent.model, model, characters, self.given_tokens)
        return OpenCall(number, agent.spec.key, estimate, now())

    def need_of(self, call: OpenCall) -> Need | None:
        """What is to be held for it; None where nothing of the run is."""
        return Need.of(call.estimate, self._options(call.agent_key), self._prices) if is_reserved(self._run) else None

    def row_of(self, call: OpenCall, need: Need | None, *, background: bool) -> ProviderCall:
        run, estimate = self._run, call.estimate
        return ProviderCall(
            tenant_id=run.tenant_id,
            run_id=run.id,
            number=call.number,
            user_id=run.user_id,
            agent_key=call.agent_key,
            model=estimate.model,
            image_model=estimate.image_model,
            background=background,
            characters=estimate.characters,
            given_tokens=estimate.given_tokens,
            asked_at=call.asked_at,
            reserved_images=need and need.images,
            reserved_nano=need and need.nano,
        )

    def settlement(self) -> Settlement | None:
        """Of the present call, as far as it came; None where there is none."""
        call, run = self.call, self._run
        if call is None:
            return None
        return Settlement(
            run.tenant_id,
            run.user_id,
            run.id,
            call.number,
            call.agent_key,
            call.response_id,
            call.entries(self._prices),
            self._object_ids,
        )

    def with_present(self, settlement: Settlement | None) -> tuple[Counter[str], Cost]:
        """Usage and cost with the present call, whose settlement it is."""
        if settlement is None or self.call is None:
            return self.usage, self.cost
        return self.usage + Counter(usage_of(self.call.report)), self.cost + settlement.cost

    def on_delta(self, characters: int) -> None:
        if self.call is not None:
            self.call.characters += characters

    def on_partial(self, partial: PartialImage) -> None:
        if self.call is not None:
            self.call.partials.add((partial.tool_call_id, partial.index))

    def on_image(self, image: GeneratedImage) -> None:
        if self.call is not None:
            self.call.add_picture(image.tool_call_id, {**self._options(image.agent_key), **image.options})

    def on_sent(self) -> None:
        if self.call is not None:
            self.call.refused = False

    def on_refused(self) -> None:
        if self.call is not None:
            self.call.refused = True

    def on_response_ended(self, report: ResponseReport | None) -> None:
        if self.call is not None:
            self.call.end(report)
            self.call.count_tokens()


async def unsettled_call(database: Database, run: Run, rows: ImageRows, written: Sequence[Record]) -> OpenCall | None:
    """The call that an earlier attempt at the run has left, with what came of it; `rows` get to know its images.

    `written` are the events of earlier attempts.
    """
    if run.attempt == 1 or not run.calling_turn:
        return None
    async with database.tenant(run.tenant_id) as session:
        images = select(Attachment).where(Attachment.run_id == run.id).order_by(Attachment.id)
        known = rows.know(await session.scalars(images))
        calls = (await session.scalars(select(ProviderCall).where(ProviderCall.run_id == run.id))).all()
        booked = set(await session.scalars(select(UsageEntry.tool_call_id).where(UsageEntry.run_id == run.id)))
    left = next((row for row in calls if row.number == run.calling_turn and row.state != CallState.SETTLED), None)
    if left is None:
        return None
    call = OpenCall.of(left)
    settled = {row.response_id for row in calls if row.state == CallState.SETTLED}
    recall(call, written, known, settled=settled, booked=booked)
    return call
