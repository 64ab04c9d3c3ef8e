"""Runs on the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict

from app.bodies import Body, not_blank
from app.errors import id_of
from app.images.schemas import ImageRequest
from app.input_limits import MAX_INPUT_CHARACTERS, MAX_INPUTS
from app.paging import Page
from app.runs.models import RunError, RunOptions, RunStatus
from app.usage.kinds import Basis

DEFAULT_AGENT = "assistant"

ObjectId = Annotated[UUID, id_of("attachment")]


# What happens to a run whose conversation has an open one: it is refused, queued behind it, or replaces it.
IfBusy = Literal["reject", "queue", "interrupt"]


class ImageToolChoice(Body):
    type: Literal["image_generation"]


class NewRun(Body):
    """`image` accepts the options of an agent's `tool_configs.image_generation`, for this run only.

    `attachments` are images to look at or work from, in this order; `edit` is the image to change, `mask` says where:
    all are `object_id`s of the user's own.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"agent_key": "designer", "input": "Draw a lighthouse at dusk", "image": {"size": "1536x1024"}},
                {"conversation_id": "019ab3f0-5d1c-7d5e-9a57-0c2f6f1f2b11", "input": "Now make it night"},
            ]
        },
    )

    input: Annotated[str, Field(min_length=1, max_length=MAX_INPUT_CHARACTERS), AfterValidator(not_blank)]
    agent_key: str | None = None
    conversation_id: Annotated[UUID, id_of("conversation")] | None = None
    tool_choice: Literal["image_generation", "auto"] | ImageToolChoice | None = None
    # `resolve` in app/images/options.py checks it, whose errors say what is allowed beside the other options.
    image: Annotated[dict[str, Any], BeforeValidator(lambda given: given, json_schema_input_type=ImageRequest)] = Field(
        default={}
    )
    attachments: Annotated[list[ObjectId], Field(max_length=MAX_INPUTS)] = Field(default=[])
    edit: ObjectId | None = None
    mask: ObjectId | None = None
    if_busy: IfBusy = "reject"

    @property
    def forced_tool(self) -> str | None:
        choice = self.tool_choice.type if isinstance(self.tool_choice, ImageToolChoice) else self.tool_choice
        return None if choice == "auto" else choice

    @property
    def edits(self) -> bool:
        return self.edit is not None or self.mask is not None

    @property
    def options(self) -> RunOptions:
        """One that names an image to edit, or a mask, wants an edit."""
        forced, image = self.forced_tool, self.image
        if self.edits:
            forced = forced or ("image_generation" if self.tool_choice is None else None)
            image = {"action": "edit", **image}
        return RunOptions(image=image, tool_choice=forced, edit=self.edit, mask=self.mask)


class Usage(TypedDict, total=False):
    """Tokens by kind; a kind that was not used may be absent."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    image_input_tokens: int
    image_output_tokens: int


class RunView(BaseModel):
    """A run as its user sees it; `error` is set for failed runs alone, `usage` and what it cost once the run has ended.

    `cost_usd` is a decimal string, null where nothing that was used has a price. `cost_basis` is the worst of its
    entries: what the provider reported, an estimate where it did not, or something without a price, beside which
    `cost_usd` is what the rest cost. `without` names tools that the agent may not use, because a limit is reached.
    """

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    conversation_id: UUID
    agent_key: str
    status: RunStatus
    error: RunError | None
    usage: Usage | None
    cost_usd: str | None
    cost_basis: Basis | None
    without: list[str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class RunPage(Page[RunView]):
    pass
