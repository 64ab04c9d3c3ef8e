"""What the model gets: the request, the history and their images; the input strategies to try, the cheapest first."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Uuid, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments import service as attachments
from app.attachments.models import Attachment, AttachmentKind
from app.compiled import CompiledStatement
from app.conversations import service as conversations
from app.conversations.models import Message
from app.images.masks import to_alpha
from app.runs.models import Run, RunStatus
from app.worker.image_inputs import ImageInputs

NEWEST = "[The newest image of this conversation, reduced:]"


@dataclass(frozen=True)
class RunInput:
    """A run's request and what lies before it; item lists are input items of the Responses API, oldest first.

    `history` is the whole conversation, `newer` what came after `last`, the run whose response the provider may still
    have. `newest` is the conversation's newest image before this run, `newest_unsent` the newest that came after
    `last`. `parent_object_id` is the image that an edit in this run starts from. `missing` says that an image which the
    request names was deleted meanwhile.
    """

    message: Message
    parent_object_id: UUID | None
    images: list[Attachment]
    edit: Attachment | None
    mask: Attachment | None
    missing: bool
    newest: Attachment | None
    newest_unsent: Attachment | None
    last: Run | None
    history: list[dict[str, Any]]
    newer: list[dict[str, Any]]


@dataclass(frozen=True)
class InputStrategy:
    """One form of a request."""

    items: list[dict[str, Any]]
    previous_response_id: str | None = None


async def load(session: AsyncSession, run: Run, *, stores: bool, already_sent: bool) -> RunInput:
    """With `already_sent` an earlier attempt has sent the request, whose images may be deleted since."""
    options, talk = run.options, run.conversation_id
    message, *before = await conversations.newest_messages(session, talk, upto=run.input_message_id)
    last = await _last_completed(session, run) if stores and before else None
    named = [] if already_sent else [*message.input_ids, *filter(None, (options.edit, options.mask))]
    images = await _images_of(session, message, named, before)
    rows = {row.id: row for row in images.pop(message.id, []) if row.user_id == run.user_id}
    newest = conversations.newest_image(before, images)
    if newest is None and len(before) == conversations.HISTORY_MESSAGES:
        newest = await conversations.find_newest_image(session, talk, before=before[-1].id)
    after = last.output_message_id if last is not None else message.id
    newest_message, newest_row = newest or (None, None)
    return RunInput(
        message=message,
        parent_object_id=options.edit or next(iter(message.input_ids), newest_row.id if newest_row else None),
        images=[] if already_sent else [rows[object_id] for object_id in message.input_ids if object_id in rows],
        edit=rows.get(options.edit) if options.edit else None,
        mask=rows.get(options.mask) if options.mask else None,
        missing=not rows.keys() >= set(named),
        newest=newest_row,
        newest_unsent=newest_row if newest_message and newest_message.id > after else None,
        last=last,
        history=conversations.to_history(before, images),
        newer=conversations.to_history([one for one in before if one.id > after], images),
    )


async def _images_of(
    session: AsyncSession, message: Message, named: Sequence[UUID], before: Sequence[Message]
) -> dict[UUID, list[Attachment]]:
    """Those named for the run under its `message`, and those of the messages before it, by one query or none."""
    if not named and not before:
        return {}
    sent = {message.id: named, **{one.id: one.input_ids for one in before if one.input_ids}}
    return await attachments.of_messages(session, [one.id for one in before], sent)


async def _last_completed(session: AsyncSession, run: Run) -> Run | None:
    """The conversation's last completed run before this one whose response the provider has named."""
    given = {"conversation": run.conversation_id, "run": run.id}
    return (await _LAST_COMPLETED.execute(session, given)).scalar()


_LAST_COMPLETED = CompiledStatement[Run](
    select(Run)
    .where(Run.conversation_id == bindparam("conversation", type_=Uuid), Run.status == RunStatus.COMPLETED)
    .where(Run.id < bindparam("run", type_=Uuid), Run.response_id.is_not(None))
    .order_by(Run.id.desc())
    .limit(1),
    Run,
)


async def strategies(
    inputs: ImageInputs, request: RunInput, *, stores: bool, already_sent: bool
) -> AsyncIterator[InputStrategy]:
    """Each to be tried where the provider has forgotten what the one before depends on."""
    text = request.message.text
    if already_sent:
        # The response is under way: the text stands for a request that is not sent again.
        yield InputStrategy([_user_item(text, [])])
        return
    if request.edit is not None:
        # With other images beside it the edited one goes first as bytes: an id alone has no place among them.
        if stores and request.edit.kind == AttachmentKind.GENERATED and not request.images:
            by_id = {"type": "image_generation_call", "id": request.edit.tool_call_id}
            yield InputStrategy([*request.history, _user_item(text, []), by_id])
        parts = await inputs.content_parts([request.edit, *request.images])
        yield InputStrategy([*request.history, _user_item(text, parts)])
        return
    item = _user_item(text, await inputs.content_parts(request.images))
    if request.last is not None:
        recalled = await _recalled(inputs, request, request.newest_unsent)
        yield InputStrategy([*request.newer, *recalled, item], request.last.response_id)
    recalled = await _recalled(inputs, request, request.newest)
    yield InputStrategy([*request.history, *recalled, item])


async def _recalled(inputs: ImageInputs, request: RunInput, image: Attachment | None) -> list[dict[str, Any]]:
    """The image that "it" means, where the user sends no image with this text."""
    if image is None or request.images:
        return []
    return [_user_item(NEWEST, [await inputs.thumbnail(image)])]


async def mask_option(inputs: ImageInputs, request: RunInput) -> dict[str, Any]:
    """The image tool's option for the run's mask, where it has one."""
    if request.mask is None:
        return {}
    convert = to_alpha if request.mask.options.get("mask") == "black_and_white" else None
    return {"input_image_mask": await inputs.source(request.mask, convert)}


def _user_item(text: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not parts:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [{"type": "input_text", "text": text}, *parts]}
