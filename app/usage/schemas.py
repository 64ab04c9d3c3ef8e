"""What was used, as its readers see it."""

from collections.abc import Iterable
from datetime import date, datetime
from typing import Literal, Self
from uuid import UUID

from pydantic import BaseModel

from app.input_limits import MAX_INPUT_CHARACTERS, MAX_INPUTS, MAX_PIXELS, UPLOAD_TYPES
from app.paging import Page
from app.settings import Settings
from app.usage.kinds import Basis, Kind
from app.usage.limits import Limit, LimitState, Scope
from app.usage.models import UsageEntry
from app.usage.money import to_usd


class UsageSum(BaseModel):
    """`cost_usd` is the sum of all entries with a price, `estimated_usd` the estimated part of it; decimal strings.

    `unpriced` counts the entries without a price: where there are some, `cost_usd` is the rest, "0" where nothing is
    left. `quantities` are by kind.
    """

    runs: int
    images: int
    quantities: dict[Kind, int]
    cost_usd: str
    estimated_usd: str
    unpriced: int


class UsageGroup(UsageSum):
    """Of one combination of what `group_by` names; the others are absent."""

    day: date | None = None
    agent_key: str | None = None
    user_id: UUID | None = None
    model: str | None = None


class UsagePage(BaseModel):
    """`total` is of all groups, on this page or not."""

    data: list[UsageGroup]
    total: UsageSum
    next_cursor: str | None


class UsageEntryView(BaseModel):
    """`cost_usd` is a decimal string, null where the model had no price; `object_id` is set for what a picture took."""

    id: UUID
    at: datetime
    run_id: UUID
    call: int
    user_id: UUID
    agent_key: str
    model: str
    kind: Kind
    quantity: int
    cost_usd: str | None
    basis: Basis
    object_id: UUID | None

    @classmethod
    def of(cls, row: UsageEntry) -> Self:
        return cls(
            id=row.id,
            at=row.created_at,
            run_id=row.run_id,
            call=row.call,
            user_id=row.user_id,
            agent_key=row.agent_key,
            model=row.model,
            kind=row.kind,
            quantity=row.quantity,
            cost_usd=to_usd(row.cost_nano),
            basis=row.basis,
            object_id=row.object_id,
        )


class UsageEntryPage(Page[UsageEntryView]):
    pass


class EstimatedItem(BaseModel):
    """`basis`: whether the provider has published how much such a run takes. `cost_usd` is null without a price."""

    kind: Kind
    model: str
    quantity: int
    cost_usd: str | None
    basis: Literal["published", "assumed"]


class RunEstimate(BaseModel):
    """What a run will probably cost, and what is reserved for it; null where a part of it has no price."""

    currency: Literal["USD"]
    cost_usd: str | None
    reserved_usd: str | None
    items: list[EstimatedItem]


class LimitView(BaseModel):
    """`allowed` is null where there is no limit; money is in decimal strings.

    `resets_at` is null for what no time gives back, and where nothing is used.
    """

    limit: Limit
    scope: Scope
    allowed: int | str | None
    used: int | str
    reserved: int | str
    resets_at: datetime | None

    @classmethod
    def of(cls, state: LimitState) -> Self:
        return cls(
            limit=state.limit,
            scope=state.scope,
            allowed=None if state.allowed is None else state.shown(state.allowed),
            used=state.shown(state.used),
            reserved=state.shown(state.reserved),
            resets_at=state.resets_at,
        )


class UploadLimits(BaseModel):
    """Of one uploaded image: its type, the size of its file, and width times height."""

    types: list[str]
    max_bytes: int
    max_pixels: int


class RunLimits(BaseModel):
    """Of one run: how many images its `attachments` may be, its `input`, and its images' `partial_images`."""

    max_attachments: int
    max_characters: int
    max_partial_images: int


class LimitsView(BaseModel):
    """`data` is in the order in which the limits refuse.

    `uploads`, `runs` and `link_seconds` are the same for every tenant. A link to an image works for `link_seconds` at
    most, and for half of them at least.
    """

    plan: str
    data: list[LimitView]
    uploads: UploadLimits
    runs: RunLimits
    link_seconds: int

    @classmethod
    def of(cls, settings: Settings, plan: str, states: Iterable[LimitState]) -> Self:
        return cls(
            plan=plan,
            data=[LimitView.of(state) for state in states],
            uploads=UploadLimits(types=list(UPLOAD_TYPES), max_bytes=settings.upload_max_bytes, max_pixels=MAX_PIXELS),
            runs=RunLimits(
                max_attachments=MAX_INPUTS,
                max_characters=MAX_INPUT_CHARACTERS,
                max_partial_images=settings.image_max_partial_images,
            ),
            link_seconds=settings.link_ttl_seconds,
        )
