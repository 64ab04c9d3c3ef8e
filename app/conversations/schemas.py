"""Conversations and messages as their readers see them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from app.attachments.models import Attachment
from app.attachments.schemas import AttachmentView
from app.bodies import Body, Name, example
from app.conversations.models import Conversation, Message, MessageRole, MessageStatus, Visibility
from app.conversations.parts import MessagePart, parts_of, sent_with
from app.paging import Page
from app.runs.models import Run, RunError
from app.runs.schemas import RunView, Usage

# More than a user may send with a message.
ATTACHMENTS_SHOWN = 20


class ConversationView(BaseModel):
    """`active_run` is the run that is executed, or else the one that is next: follow it to see what the agent does.

    `updated_at` is that of the last activity: a run was started, or the conversation renamed or shared.
    """

    model_config = ConfigDict(from_attributes=True, json_schema_serialization_defaults_required=True)

    id: UUID
    user_id: UUID
    title: str
    agent_key: str
    visibility: Visibility
    active_run: RunView | None = None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: Conversation, active_run: Run | None) -> Self:
        view = cls.model_validate(row)
        if active_run is not None:
            view.active_run = RunView.model_validate(active_run)
        return view


class ConversationPage(BaseModel):
    """`next_cursor` is a place in the order of activity: it holds where conversations move. Null on the last page."""

    data: list[ConversationView]
    next_cursor: str | None


class ConversationChange(Body):
    """What is left out stays as it is. `visibility`: `tenant` lets every member read it, viewers too."""

    model_config = example({"title": "Lighthouses"})

    title: Name | None = None
    visibility: Visibility | None = None


class MessageView(BaseModel):
    """What a user or an agent said, and the images in it.

    An agent's message ends as its run does: `status`, `error`, `usage` and `cost_usd` are the run's, and one that
    failed or was stopped has the text so far; `agent_key` is who answered. A user's is `completed`. `parts` are text
    and images in the order in which they came. `attachments` are the first 20; where there are more,
    `attachments_next_cursor` is the `cursor` of those that follow, at `/attachments` below it.
    """

    id: UUID
    role: MessageRole
    status: MessageStatus
    agent_key: str | None
    text: str
    parts: list[MessagePart]
    attachments: list[AttachmentView]
    attachments_next_cursor: UUID | None
    run_id: UUID | None
    error: RunError | None
    usage: Usage | None
    cost_usd: str | None
    created_at: datetime

    @classmethod
    def of(cls, row: Message, attachments: Sequence[Attachment], run: Run | None) -> Self:
        """Without links yet, as `AttachmentView.of`; `run` is the message's, which has ended where it is an agent's."""
        sent = sent_with(row, run)
        run = run if row.role == MessageRole.ASSISTANT else None
        shown = attachments[:ATTACHMENTS_SHOWN]
        return cls(
            id=row.id,
            role=row.role,
            status=MessageStatus(run.status.value if run else MessageStatus.COMPLETED),
            # A run may have been handed over.
            agent_key=run and (run.calling_agent or run.agent_key),
            text=row.text,
            parts=parts_of(row, attachments, sent),
            attachments=[AttachmentView.of(attachment) for attachment in shown],
            attachments_next_cursor=shown[-1].id if len(shown) < len(attachments) else None,
            run_id=row.run_id,
            error=run and run.error,
            usage=cast(Usage | None, run and run.usage),
            cost_usd=run and run.cost_usd,
            created_at=row.created_at,
        )


class MessagePage(Page[MessageView]):
    pass
