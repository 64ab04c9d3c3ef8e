"""The events of a run: one class each, the same for the live stream, the replay from the rows and the document.

An event that holds images carries storage keys in the log and is given links for each reader (`LinkedEvent`); all
others go out as the bytes they were written.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, Self, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypeAliasType

from app.attachments.file_tokens import Grant
from app.attachments.links import Links
from app.attachments.models import Attachment, AttachmentError, AttachmentStatus
from app.attachments.schemas import UNLINKED, AttachmentView, give_links
from app.conversations.models import Message
from app.conversations.schemas import MessageView
from app.error_codes import ErrorCode
from app.event_log import Record
from app.runs.models import Run, RunError, RunStatus
from app.runs.schemas import RunView

# A longer delta is split, so that no event exceeds 64 KiB.
MAX_DELTA_CHARACTERS = 10_000
MAX_EVENT_BYTES = 63 * 1024


class Event(BaseModel, frozen=True):
    """`seq` numbers the events of a run 1, 2, 3 … without gaps."""

    # The fields with a default are always sent, too.
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    terminal: ClassVar[bool] = False

    type: str
    seq: int = 0
    run_id: UUID = UUID(int=0)


class LinkedEvent(Event, ABC, frozen=True):
    """An event whose links are made for each reader."""

    @abstractmethod
    async def with_links(self, links: Links) -> Self: ...


class RunCreated(Event, frozen=True):
    """The run is accepted and waits for a worker."""

    type: Literal["run.created"] = "run.created"
    run: RunView


class RunStarted(Event, frozen=True):
    """A worker executes the run."""

    type: Literal["run.started"] = "run.started"
    run: RunView


class MessageStarted(Event, frozen=True):
    """The agent's message begins; `message_id` is the message's id in the conversation."""

    type: Literal["message.started"] = "message.started"
    message_id: UUID


class TextDelta(Event, frozen=True):
    """The next piece of the message's text."""

    type: Literal["text.delta"] = "text.delta"
    message_id: UUID
    delta: str


class ReasoningDelta(Event, frozen=True):
    """The next piece of the model's summary of its reasoning."""

    type: Literal["reasoning.delta"] = "reasoning.delta"
    delta: str


class ToolEvent(Event, frozen=True):
    tool_call_id: str
    name: str
    status: str


class ToolStarted(ToolEvent, frozen=True):
    """The agent uses a tool; `name` is its key, such as `image_generation`."""

    type: Literal["tool.started"] = "tool.started"


class ToolProgress(ToolEvent, frozen=True):
    """A tool that runs at the provider reports its state, such as `generating`; its end is `tool.completed`."""

    type: Literal["tool.progress"] = "tool.progress"


class ToolCompleted(ToolEvent, frozen=True):
    """A tool has ended; `status` is `completed` or `failed`."""

    type: Literal["tool.completed"] = "tool.completed"


class ImagePartial(LinkedEvent, frozen=True):
    """A preview of an image that is being drawn; `index` counts from 0, and `of` previews are expected.

    `width` and `height` are pixels; `url` works until `url_expires_at`.
    """

    type: Literal["image.partial"] = "image.partial"
    tool_call_id: str
    index: int
    of: int
    url: str
    url_expires_at: datetime = UNLINKED
    mime_type: str
    width: int
    height: int

    async def with_links(self, links: Links) -> Self:
        (link,) = await links.to([Grant(self.url, self.url.rpartition("/")[2], self.mime_type)])
        return self.model_copy(update={"url": link.url, "url_expires_at": link.expires_at})


class AttachmentEvent(LinkedEvent, frozen=True):
    attachment: AttachmentView

    async def with_links(self, links: Links) -> Self:
        await give_links([self.attachment], links)
        return self


class AttachmentCreated(AttachmentEvent, frozen=True):
    """An image is stored, and its `url` works."""

    type: Literal["attachment.created"] = "attachment.created"


class AttachmentUpdated(AttachmentEvent, frozen=True):
    """The smaller copies of an image, `variants`, and its `blurhash` are there; not sent after the run's end."""

    type: Literal["attachment.updated"] = "attachment.updated"


class AttachmentFailed(Event, frozen=True):
    """An image is not there: it could not be drawn, read or stored; `retryable` where it may come later.

    `object_id` is the attachment that the message shows in its place.
    """

    type: Literal["attachment.failed"] = "attachment.failed"
    tool_call_id: str | None
    object_id: UUID
    code: ErrorCode
    detail: str
    retryable: bool

    @classmethod
    def of(cls, row: Attachment, error: AttachmentError) -> Self:
        return cls(tool_call_id=row.tool_call_id, object_id=row.id, **error.model_dump())


class AgentChanged(Event, frozen=True):
    """Another agent answers from here on."""

    type: Literal["agent.changed"] = "agent.changed"
    agent_key: str


class MessageCompleted(LinkedEvent, frozen=True):
    """The agent's message as the conversation keeps it: its text and its first attachments.

    They are 20 at most; where the event would exceed 64 KiB, they have no `variants`, and are fewer if need be.
    `attachments_next_cursor` is the `cursor` of those that follow, at
    `/v1/conversations/{conversation_id}/messages/{message_id}/attachments`. `parts` is empty where `truncated`: the
    conversation's messages have them all. The event exceeds 64 KiB where the text alone does.
    """

    type: Literal["message.completed"] = "message.completed"
    message: MessageView
    truncated: bool = False

    @classmethod
    def of(cls, row: Message, rows: Sequence[Attachment], run: Run) -> Self:
        message = MessageView.of(row, rows, run)
        truncated = len(to_json(message.model_copy(update={"attachments": []}))) > MAX_EVENT_BYTES
        return cls(message=message.model_copy(update={"parts": []}) if truncated else message, truncated=truncated)

    async def with_links(self, links: Links) -> Self:
        await give_links(self.message.attachments, links)
        if (too_many := self._bytes_too_many()) > 0:
            for attachment in self.message.attachments:
                attachment.variants = []
            too_many = self._bytes_too_many()
        if too_many <= 0:
            return self
        shown = self.message.attachments
        sizes = accumulate(len(one.model_dump_json().encode()) for one in reversed(shown))
        left = shown[: -1 - sum(size < too_many for size in sizes)]
        # None may be left: the cursor of those from the first one that is not.
        cut = UUID(int=shown[len(left)].object_id.int - 1) if shown else None
        update: dict[str, Any] = {"attachments": left, "attachments_next_cursor": cut}
        return self.model_copy(update={"message": self.message.model_copy(update=update)})

    def _bytes_too_many(self) -> int:
        return len(self.model_dump_json().encode()) - MAX_EVENT_BYTES


class RunCompleted(Event, frozen=True):
    """The run has ended well; the last event."""

    terminal = True

    type: Literal["run.completed"] = "run.completed"
    run: RunView


class RunFailed(Event, frozen=True):
    """The run has failed; the last event."""

    terminal = True

    type: Literal["run.failed"] = "run.failed"
    run: RunView
    error: RunError


class RunCancelled(Event, frozen=True):
    """The run was stopped; the last event. Images that were finished before stay."""

    terminal = True

    type: Literal["run.cancelled"] = "run.cancelled"
    run: RunView


# A name of its own in the OpenAPI document.
RunEvent = TypeAliasType(
    "RunEvent",
    Annotated[
        RunCreated
        | RunStarted
        | MessageStarted
        | TextDelta
        | ReasoningDelta
        | ToolStarted
        | ToolProgress
        | ToolCompleted
        | ImagePartial
        | AttachmentCreated
        | AttachmentUpdated
        | AttachmentFailed
        | AgentChanged
        | MessageCompleted
        | RunCompleted
        | RunFailed
        | RunCancelled,
        Field(discriminator="type"),
    ],
)

EVENT_CLASSES: dict[str, type[Event]] = {
    str(event.model_fields["type"].default): event for event in get_args(get_args(RunEvent.__value__)[0])
}
_READER = TypeAdapter[Event](RunEvent)


def run_ended(run: RunView) -> RunCompleted | RunFailed | RunCancelled:
    """The terminal event of a run that has ended."""
    if run.error is not None:
        return RunFailed(run=run, error=run.error)
    return RunCompleted(run=run) if run.status == RunStatus.COMPLETED else RunCancelled(run=run)


def attachment_event(row: Attachment) -> AttachmentCreated | AttachmentFailed | None:
    """What is to be told of an image that is stored, or of one that failed."""
    if row.status == AttachmentStatus.STORED:
        return AttachmentCreated(attachment=AttachmentView.of(row))
    return AttachmentFailed.of(row, row.error) if row.error else None


def read_event(data: str | bytes) -> Event:
    """The event that was written as this JSON."""
    return _READER.validate_json(data)


def to_record(event: Event, run_id: UUID, seq: int, key: str = "") -> Record:
    """The event as the log holds it; `key` is the same whichever attempt writes the event, by default its type."""
    # Not from a copy of the event: of a delta that would take twice the time.
    return Record(seq, event.type, to_json({**vars(event), "run_id": run_id, "seq": seq}), key or event.type)
