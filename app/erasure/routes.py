"""Everything that is deleted with what belongs to it: conversations, members, the tenant; and receipts."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Query, Response

from app.broker import Broker
from app.db import IdentitySession, from_state
from app.erasure import service
from app.erasure.schemas import ErasureRequested, ErasureView, TenantErasure
from app.error_codes import ErrorCode
from app.errors import id_of
from app.identity.actor import CurrentSettings, TenantSession, may
from app.identity.anonymous import LimitedByAddress
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.openapi import Responses, Router, problems
from app.tenants import service as tenants

router = Router(prefix="/v1")

CurrentBroker = Annotated[Broker, from_state("broker")]
UserId = Annotated[UUID, id_of("member")]
ConversationId = Annotated[UUID, id_of("conversation")]
Data = Annotated[Literal["erase"] | None, Query(description="`erase`: all that they made, too; needs the role owner.")]
REMOVED: Responses = {
    202: {"model": ErasureRequested, "description": "What they made is being erased."},
    204: {"description": "They are no member any more."},
    **problems(ErrorCode.LAST_OWNER),
}


@router.delete("/conversations/{conversation_id}", status_code=204, response_class=Response, tags=["conversations"])
async def delete_conversation(
    conversation_id: ConversationId,
    actor: Annotated[Actor, may(Permission.WRITE_CHAT)],
    session: TenantSession,
    settings: CurrentSettings,
    broker: CurrentBroker,
) -> None:
    """Delete a conversation.

    Its messages, runs and generated images go with it; a run that has not ended is stopped. What the storage and the
    provider have of it is removed soon after.
    """
    await service.delete_conversation(session, broker, settings, actor, conversation_id)


@router.delete(
    "/members/{user_id}",
    status_code=204,
    response_class=Response,
    response_model=None,
    responses=REMOVED,
    tags=["tenants"],
)
async def remove_member(
    user_id: UserId,
    actor: Annotated[Actor, may(Permission.LEAVE)],
    session: TenantSession,
    broker: CurrentBroker,
    data: Data = None,
) -> Response:
    """Remove a member, or leave.

    It holds from their next request on; their API keys end with it. What they have made stays the tenant's, unless an
    owner asks for `data=erase`, now or later: then it is erased, and the answer has a receipt.
    """
    if data is None:
        await tenants.remove_member(session, actor, user_id)
        return Response(status_code=204)
    requested = await service.erase_member(session, broker, actor, user_id)
    return Response(requested.model_dump_json(), 202, media_type="application/json")


@router.delete("/tenants/current", status_code=202, tags=["tenants"])
async def erase_tenant(
    body: TenantErasure,
    actor: Annotated[Actor, may(Permission.ERASE_TENANT)],
    session: TenantSession,
    settings: CurrentSettings,
    broker: CurrentBroker,
) -> ErasureRequested:
    """Erase the tenant.

    From the next request on nobody is a member of it, and none of its API keys works. All that it has here, in the
    storage and at the provider is removed; the receipt tells how far that is. Only what was used stays in the books, by
    ids alone.
    """
    return await service.erase_tenant(session, broker, settings, actor, body.confirm)


@router.get(
    "/erasures/{receipt}",
    dependencies=[LimitedByAddress],
    responses=problems(ErrorCode.LIMIT_EXCEEDED),
    tags=["accounts"],
)
async def get_erasure(receipt: str, session: IdentitySession) -> ErasureView:
    """Look at an erasure.

    The receipt is the permission: whoever it belonged to has no credential any more.
    """
    return await service.find(session, receipt)
