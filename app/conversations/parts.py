"""A message's text and images in the order in which they came."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from app.attachments.models import Attachment
from app.conversations.models import Message, MessageRole
from app.runs.models import Run

# Stands between the texts of different items of an answer.
BREAK = "\n\n"


class TextPart(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    type: Literal["text"] = "text"
    text: str


class ImagePart(BaseModel):
    """`object_id` is that of one of the message's attachments, null where it was deleted since."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    type: Literal["image"] = "image"
    object_id: UUID | None


MessagePart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def sent_with(row: Message, run: Run | None) -> list[UUID]:
    """The images that a user sent with a message: the one to be changed first; none with an agent's."""
    if row.role != MessageRole.USER:
        return []
    edited = run.options.edit if run is not None else None
    return [*([edited] if edited and edited not in row.input_ids else []), *row.input_ids]


def parts_of(row: Message, attachments: Sequence[Attachment], sent: Sequence[UUID]) -> list[TextPart | ImagePart]:
    """Images without a place of their own come last: those that a user sent, and what was found again later.

    Whoever deletes a drawn one gives it a place, where it has none.
    """
    return [*_texts_and_images(row, attachments, sent)]


def _texts_and_images(
    row: Message, attachments: Sequence[Attachment], sent: Sequence[UUID]
) -> Iterator[TextPart | ImagePart]:
    there = dict.fromkeys(attachment.id for attachment in attachments)
    places = row.image_places.root if row.image_places else []
    done = 0
    for after, object_id in places:
        yield from _text(row.text, done, after)
        yield ImagePart(object_id=object_id if object_id in there else None)
        done = max(done, after)
    yield from _text(row.text, done, len(row.text))
    placed = {object_id for _, object_id in places}
    for object_id in sent or [one for one in there if one not in placed]:
        yield ImagePart(object_id=object_id if object_id in there else None)


def _text(text: str, start: int, end: int) -> Iterator[TextPart]:
    """That between two images, without the break that parts it from what was said before."""
    piece = text[start:end].removeprefix(BREAK if start else "")
    if piece:
        yield TextPart(text=piece)
