"""Runs on the wire."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.errors import id_of, not_blank
from app.runs.models import RunStatus

# What the provider takes at once.
MAX_INPUTS = 16

ObjectId = Annotated[UUID, id_of("attachment")]


# What becomes of a run whose conversation has another one open: refused, started after it, or started in its place.
IfBusy = Literal["reject", "queue", "interrupt"]


class ImageToolChoice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["image_generation"]


class NewRun(BaseModel):
    """`image` takes the picture options of an agent's `tool_configs.image_generation`, for this run only.

    `attachments` are pictures to look at or work from, in this order; `edit` is the one to change, `mask` says where:
    all are `object_id`s of the person's own.
    """

    model_config = ConfigDict(extra="forbid")

    input: Annotated[str, Field(min_length=1, max_length=32_000), AfterValidator(not_blank)]
    agent_key: str | None = None
    conversation_id: Annotated[UUID, id_of("conversation")] | None = None
    tool_choice: Literal["image_generation", "auto"] | ImageToolChoice | None = None
    image: dict[str, Any] = {}
    attachments: Annotated[list[ObjectId], Field(max_length=MAX_INPUTS)] = []
    edit: ObjectId | None = None
    mask: ObjectId | None = None
    if_busy: IfBusy = "reject"

    @property
    def forced_tool(self) -> str | None:
        choice = self.tool_choice.type if isinstance(self.tool_choice, ImageToolChoice) else self.tool_choice
        return None if choice == "auto" else choice


class RunView(BaseModel):
    """`error` is `{code, message, retryable}`; `usage` counts tokens by kind."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    conversation_id: UUID
    agent_key: str
    status: RunStatus
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
