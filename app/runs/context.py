"""What the model is told of the past, and with which pictures: the ways to ask, the cheapest first."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import openai
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments import service as attachments
from app.attachments.models import Attachment, AttachmentKind
from app.conversations import service as conversations
from app.conversations.models import Message
from app.images.masks import to_alpha
from app.runs import service
from app.runs.inputs import Sender
from app.runs.models import Run

NEWEST = "[The newest picture of this conversation, reduced:]"


@dataclass(frozen=True)
class Context:
    """A run's request and what lies before it; item lists are input items of the Responses API, oldest first.

    `past` is the whole conversation, `newer` what came after `last`, the run whose response the provider may still
    have. `newest` is the conversation's newest picture before this run, `unseen` the newest that came after `last`.
    `parent_object_id` is the picture that an edit in this run starts from.
    """

    message: Message
    parent_object_id: UUID | None
    inputs: list[Attachment]
    edited: Attachment | None
    mask: Attachment | None
    newest: Attachment | None
    unseen: Attachment | None
    last: Run | None
    past: list[dict[str, Any]]
    newer: list[dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """One form of a request."""

    items: list[dict[str, Any]]
    previous_response_id: str | None = None


async def load(session: AsyncSession, run: Run, *, stores: bool, asked: bool) -> Context:
    """`asked` says that an attempt before has sent the request; the pictures that it named may be gone since.

    Raises NotFound where they are gone before that.
    """
    message = await session.get_one(Message, run.input_message_id)
    last = await service.last_completed(session, run) if stores else None
    edit_id, mask_id = (UUID(name) if name else None for name in (run.options.get("edit"), run.options.get("mask")))
    sent_ids = [] if asked else message.input_ids
    wanted = [*sent_ids, *filter(None, [] if asked else [edit_id, mask_id])]
    found = await attachments.of_ids(session, run.user_id, wanted)
    newest = await conversations.newest_picture(session, run.conversation_id, before=message.id)
    past = await conversations.history(session, run.conversation_id, before=message.id)
    unseen, newer = None, list[dict[str, Any]]()
    if last is not None:
        talk, after = run.conversation_id, last.output_message_id
        unseen = await conversations.newest_picture(session, talk, before=message.id, after=after)
        newer = await conversations.history(session, talk, before=message.id, after=after)
    return Context(
        message=message,
        parent_object_id=edit_id or next(iter(message.input_ids), newest.id if newest else None),
        inputs=[found[object_id] for object_id in sent_ids],
        edited=found.get(edit_id) if edit_id else None,
        mask=found.get(mask_id) if mask_id else None,
        newest=newest,
        unseen=unseen,
        last=last,
        past=past,
        newer=newer,
    )


async def ways(sender: Sender, context: Context, *, stores: bool, asked: bool) -> AsyncIterator[Way]:
    """Each to be tried where the provider has forgotten what the one before leans on."""
    words = context.message.text
    if asked:
        # The answer is on its way: the words stand for a request that is not sent again.
        yield Way([_said(words, [])])
        return
    if context.edited is not None:
        # With other pictures beside it the edited one goes first as bytes: an id alone has no place among them.
        if stores and context.edited.kind == AttachmentKind.GENERATED and not context.inputs:
            by_id = {"type": "image_generation_call", "id": context.edited.tool_call_id}
            yield Way([*context.past, _said(words, []), by_id])
        parts = await sender.parts([context.edited, *context.inputs])
        yield Way([*context.past, _said(words, parts)])
        return
    request = _said(words, await sender.parts(context.inputs))
    if context.last is not None:
        recalled = await _recalled(sender, context, context.unseen)
        yield Way([*context.newer, *recalled, request], context.last.response_id)
    recalled = await _recalled(sender, context, context.newest)
    yield Way([*context.past, *recalled, request])


async def _recalled(sender: Sender, context: Context, picture: Attachment | None) -> list[dict[str, Any]]:
    """What "it" is, where the person sends no picture with these words."""
    if picture is None or context.inputs:
        return []
    return [_said(NEWEST, [await sender.reduced(picture)])]


async def mask_option(sender: Sender, context: Context) -> dict[str, Any]:
    """The image tool's option for the run's mask, where it has one."""
    if context.mask is None:
        return {}
    convert = to_alpha if context.mask.options.get("mask") == "black_and_white" else None
    return {"input_image_mask": await sender.reference(context.mask, convert)}


def is_forgotten(error: openai.APIStatusError) -> bool:
    """The provider refused, before it did anything, because it no longer has a response or picture named to it."""
    if error.code == "previous_response_not_found":
        return True
    # A picture may be there and still not be taken by its id alone: without the reasoning that led to it.
    gone, incomplete = "Item with id" in str(error), "without its required 'reasoning' item" in str(error)
    return (error.status_code == 404 and gone) or (error.status_code == 400 and incomplete)


def _said(text: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not parts:
        return {"role": "user", "content": text}
    return {"role": "user", "content": [{"type": "input_text", "text": text}, *parts]}
