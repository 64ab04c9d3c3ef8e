"""What an actor may see of a tenant: their own, and what belongs to a conversation that its user shares.

Every read of a conversation, its runs and images goes through here. Tables of other features are named, not imported.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    Select,
    Text,
    Uuid,
    any_,
    bindparam,
    column,
    exists,
    or_,
    select,
    table,
)
from sqlalchemy.orm import InstrumentedAttribute

from app.errors import Forbidden
from app.identity.service import Actor

_conversations = table("conversations", column("id", Uuid), column("visibility", Text))
_messages = table("messages", column("conversation_id", Uuid), column("input_ids", ARRAY(Uuid)))

SHARED = "tenant"
"""The visibility of a conversation that every member may read."""


READER = bindparam("reader", type_=Uuid)
"""For a statement that is compiled once, in the place of a user's id."""


def visible_to(
    reader: UUID | BindParameter[Any],
    user_id: InstrumentedAttribute[UUID],
    conversation_id: InstrumentedAttribute[UUID] | InstrumentedAttribute[UUID | None],
) -> ColumnElement[bool]:
    """Of a table with these columns: the rows that this user may see."""
    return or_(user_id == reader, conversation_id.in_(_shared()))


def sent_with_shared(object_id: InstrumentedAttribute[UUID]) -> ColumnElement[bool]:
    """Uploads belong to no conversation, but are seen with the messages that they were sent with."""
    return exists().where(_messages.c.conversation_id.in_(_shared()), object_id == any_(_messages.c.input_ids))


def require_own(actor: Actor, user_id: UUID) -> None:
    """Of what the actor may see. Raises Forbidden."""
    if user_id != actor.user_id:
        raise Forbidden("This is shared with you to be read: only its author may do that.")


def _shared() -> Select[UUID]:
    return select(_conversations.c.id).where(_conversations.c.visibility == SHARED)
