"""Deleting rows of a tenant, inside it; what has to go from the store afterwards is written down with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    CursorResult,
    Delete,
    Text,
    Uuid,
    case,
    column,
    delete,
    func,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.attachments.models import Attachment, AttachmentStatus, OrphanCandidate
from app.conversations.models import Conversation, Message
from app.db import now
from app.erasure.models import ObjectRemoval
from app.exports.models import Export, ExportStatus
from app.identity import audit
from app.identity.audit import Action, Author, TargetType
from app.identity.models import Invitation, Membership
from app.runs.models import Run
from app.runs.provider_objects import ProviderObject
from app.settings import Settings
from app.storage import keys

CONVERSATIONS_AT_ONCE = 20
IMAGES_AT_ONCE = 500


@dataclass(frozen=True)
class Deletion:
    """Why rows of a tenant are deleted: for an erasure, or one conversation for itself.

    What is on its way into the store has landed after `settle`; no preview is kept for longer than `previews_for`.
    `everything` says that all of the tenant's objects go, whatever their rows say.
    """

    tenant_id: UUID
    settle: timedelta
    previews_for: timedelta
    erasure_id: UUID | None = None
    everything: bool = False

    @classmethod
    def of(
        cls, settings: Settings, tenant_id: UUID, erasure_id: UUID | None = None, *, everything: bool = False
    ) -> "Deletion":
        """By the end of a lease a worker that lives has noticed that its run is gone."""
        lease, stream = settings.run_lease_seconds, settings.stream_ttl_seconds + settings.run_timeout_seconds
        return cls(tenant_id, timedelta(seconds=lease), timedelta(seconds=stream), erasure_id, everything)


async def delete_conversations(
    session: AsyncSession, deletion: Deletion, condition: ColumnElement[bool], author: Author | None = None
) -> int:
    """The first conversations that meet the condition; how many rows. With `author` it is written down."""
    chosen = select(Conversation.id).where(condition).order_by(Conversation.id).limit(CONVERSATIONS_AT_ONCE)
    # Locked: nothing is added to them any more.
    ids = (await session.scalars(chosen.with_for_update())).all()
    if not ids:
        return 0
    runs = await session.execute(select(Run.id, Run.finished_at).where(Run.conversation_id.in_(ids)))
    ended = {run.id: run.finished_at for run in runs}
    images = await _leave_images(session, deletion, Attachment.conversation_id.in_(ids))
    recent = now() - deletion.previews_for
    shown = [run_id for run_id, ended_at in ended.items() if ended_at is None or ended_at > recent]
    previews = {keys.preview_prefix(deletion.tenant_id, run_id): ended[run_id] is None for run_id in shown}
    await _leave_objects(session, deletion, previews)
    if deletion.erasure_id is not None:
        await session.execute(
            update(ProviderObject).where(ProviderObject.run_id.in_(ended)).values(erasure_id=deletion.erasure_id)
        )
    for conversation_id in ids if author else ():
        audit.record(
            session,
            deletion.tenant_id,
            author or audit.SYSTEM,
            Action.CONVERSATION_DELETED,
            TargetType.CONVERSATION,
            conversation_id,
        )
    rows = [
        await _deleted(session, delete(Attachment).where(Attachment.id.in_(images))),
        await _deleted(session, delete(Message).where(Message.conversation_id.in_(ids))),
        await _deleted(session, delete(Run).where(Run.conversation_id.in_(ids))),
        await _deleted(session, delete(Conversation).where(Conversation.id.in_(ids))),
    ]
    return sum(rows)


async def delete_uploads(session: AsyncSession, deletion: Deletion, user_id: UUID | None) -> int:
    """The first images of the user, or of the tenant, that are in no conversation; how many rows."""
    chosen = Attachment.conversation_id.is_(None) & (true() if user_id is None else Attachment.user_id == user_id)
    images = await _leave_images(session, deletion, chosen, limit=IMAGES_AT_ONCE)
    return await _deleted(session, delete(Attachment).where(Attachment.id.in_(images)))


async def delete_exports(session: AsyncSession, deletion: Deletion, user_id: UUID | None) -> int:
    """Those of the user, or of the tenant; an archive that is just being written lands before its prefix is due."""
    chosen = true() if user_id is None else Export.user_id == user_id
    deleted = await session.execute(delete(Export).where(chosen).returning(Export.id, Export.status))
    rows = deleted.all()
    prefixes = {keys.export_prefix(deletion.tenant_id, row.id): row.status == ExportStatus.RUNNING for row in rows}
    await _leave_objects(session, deletion, prefixes)
    return len(rows)


async def delete_rest(session: AsyncSession, deletion: Deletion) -> int:
    """What else easel_app may delete of a tenant that has neither conversations nor images."""
    for table in (ProviderObject, ObjectRemoval):
        await session.execute(update(table).values(erasure_id=deletion.erasure_id))
    return sum([await _deleted(session, delete(table)) for table in (Invitation, Membership, OrphanCandidate)])


async def leave_prefix(session: AsyncSession, deletion: Deletion, *, settled: bool) -> None:
    """Have all of the tenant's objects removed: at once, and once more when what was on its way has landed."""
    await _leave_to_do(session, deletion, {keys.tenant_prefix(deletion.tenant_id): settled})


async def _leave_images(
    session: AsyncSession, deletion: Deletion, condition: ColumnElement[bool], limit: int | None = None
) -> Sequence[UUID]:
    """The ids of the images, whose objects are to go."""
    columns = (Attachment.id, Attachment.storage_key, Attachment.status)
    found = await session.execute(select(*columns).where(condition).order_by(Attachment.id).limit(limit))
    rows = found.all()
    originals = {row.storage_key: row.status == AttachmentStatus.PENDING for row in rows}
    variants = {keys.variant_prefix(deletion.tenant_id, row.id): False for row in rows}
    await _leave_objects(session, deletion, originals | variants)
    return [row.id for row in rows]


async def _leave_objects(session: AsyncSession, deletion: Deletion, prefixes: dict[str, bool]) -> None:
    if prefixes and not deletion.everything:
        await _leave_to_do(session, deletion, prefixes)


async def _leave_to_do(session: AsyncSession, deletion: Deletion, prefixes: dict[str, bool]) -> None:
    """Prefix -> whether something may still be on its way there."""
    columns = (column("prefix", Text), column("late", Boolean))
    given = func.unnest(literal(list(prefixes), ARRAY(Text)), literal(list(prefixes.values()), ARRAY(Boolean)))
    listed = given.table_valued(*columns, name="given").render_derived()
    due_at = func.clock_timestamp() + case((listed.c.late, deletion.settle), else_=timedelta(0))
    erasure_id = literal(deletion.erasure_id, Uuid)
    source = select(literal(deletion.tenant_id, Uuid), erasure_id, listed.c.prefix, due_at)
    statement = insert(ObjectRemoval).from_select(["tenant_id", "erasure_id", "prefix", "due_at"], source)
    later = func.greatest(ObjectRemoval.due_at, statement.excluded.due_at)
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[ObjectRemoval.tenant_id, ObjectRemoval.prefix],
            set_={
                "due_at": later,
                "erasure_id": func.coalesce(statement.excluded.erasure_id, ObjectRemoval.erasure_id),
            },
        )
    )


async def _deleted(session: AsyncSession, statement: Delete) -> int:
    result = await session.execute(statement, execution_options={"synchronize_session": False})
    return cast(CursorResult[Any], result).rowcount
