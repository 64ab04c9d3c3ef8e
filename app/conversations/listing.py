"""Finding conversations, the last active first, each with the run that it is at."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, select, true, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.conversations.models import Conversation
from app.errors import NotFound
from app.identity.service import Actor
from app.identity.sharing import visible_to
from app.runs.models import OPEN, Run

_EPOCH = datetime.fromtimestamp(0, UTC)


class Position(NamedTuple):
    """Of a conversation in the order of activity, as it was when it was listed: it stays where the conversation moves.

    As text: 8 bytes of microseconds since 1970 and 16 of the id, in base64url.
    """

    at: datetime
    conversation_id: UUID

    def __str__(self) -> str:
        moment = (self.at - _EPOCH) // timedelta(microseconds=1)
        return urlsafe_b64encode(moment.to_bytes(8) + self.conversation_id.bytes).decode()

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Raises ValueError."""
        try:
            data = urlsafe_b64decode(text)
            at = _EPOCH + timedelta(microseconds=int.from_bytes(data[:8]))
            return cls(at, UUID(bytes=data[8:]))
        except (ValueError, OverflowError):
            raise ValueError("the next_cursor of an earlier page") from None


def is_position(text: str) -> str:
    """For `AfterValidator(is_position)`."""
    Position.parse(text)
    return text


def listed(actor: Actor, *, shared: bool, q: str | None) -> Select[Conversation, Run]:
    """The actor's own, or those that others share with them, each with its active run; `q` is in the title."""
    own = Conversation.user_id == actor.user_id
    theirs = visible_to(actor.user_id, Conversation.user_id, Conversation.id) & ~own
    statement = _with_active_run(theirs if shared else own)
    return statement.where(Conversation.title.icontains(q, autoescape=True)) if q else statement


async def fetch_page(
    session: AsyncSession, statement: Select[Conversation, Run], *, limit: int, after: Position | None
) -> tuple[Sequence[Row[Conversation, Run]], Position | None]:
    """Conversations with their active runs, and the position of the last one where there are more."""
    order = (Conversation.updated_at, Conversation.id)
    if after is not None:
        statement = statement.where(tuple_(*order) < tuple_(*after))
    found = (await session.execute(statement.order_by(*(one.desc() for one in order)).limit(limit + 1))).all()
    rows = found[:limit]
    more = len(found) > limit
    return rows, Position(rows[-1].Conversation.updated_at, rows[-1].Conversation.id) if more else None


async def get_with_run(session: AsyncSession, actor: Actor, conversation_id: UUID) -> tuple[Conversation, Run | None]:
    """One that the actor may read, and its active run. Raises NotFound."""
    readable = visible_to(actor.user_id, Conversation.user_id, Conversation.id)
    row = (await session.execute(_with_active_run((Conversation.id == conversation_id) & readable))).one_or_none()
    if row is None:
        raise NotFound("conversation")
    return row.Conversation, row.active


def _with_active_run(condition: ColumnElement[bool]) -> Select[Conversation, Run]:
    """The active run is the one that is executed, or else the oldest that waits."""
    of_it = (Run.tenant_id == Conversation.tenant_id) & (Run.conversation_id == Conversation.id) & Run.status.in_(OPEN)
    # `running` comes after `queued`.
    first = select(Run).where(of_it).order_by(Run.status.desc(), Run.id).limit(1).lateral("active")
    active = aliased(Run, first, name="active")
    return select(Conversation, active).outerjoin(active, true()).where(condition)
