"""Start a run, look at it, follow its events, stop it."""

from typing import Annotated

from fastapi import Header, Query, Response
from fastapi.responses import StreamingResponse

from app.attachments.links import Links, ReaderLinks
from app.error_codes import ErrorCode
from app.identity.actor import CurrentLimits, CurrentSettings, TenantSession, may
from app.identity.permissions import Permission
from app.identity.service import Actor
from app.limits import Permit
from app.openapi import Responses, Router, problems, sends, streams
from app.paging import Paging, fetch_page
from app.runs import estimates, reader, service
from app.runs.admission import Starting
from app.runs.events import RunEvent
from app.runs.idempotency import require_key
from app.runs.models import Run, RunStatus
from app.runs.parameters import (
    After,
    ConversationId,
    CurrentBroker,
    CurrentPrices,
    CurrentRegistry,
    CurrentSource,
    CurrentStreams,
    Key,
    LastEventId,
    RunId,
)
from app.runs.reader import EventSource, follow
from app.runs.run_log import tag_run
from app.runs.schemas import NewRun, RunPage, RunView
from app.runs.streams import admit_stream
from app.usage.schemas import RunEstimate

router = Router(prefix="/v1/runs", tags=["runs"])

EVENTS = {"description": "The run's events.", **streams(RunEvent), **sends("X-Run-Id", "Cache-Control")}
NO_EVENTS = {"description": "The run has ended, and no event came after that one.", **sends("X-Run-Id")}
FOLLOW: Responses = {200: EVENTS, 204: NO_EVENTS, **problems(ErrorCode.LIMIT_EXCEEDED)}
RATE = ("RateLimit-Policy", "RateLimit")
STARTED = ("Location", "X-Run-Id", "Idempotent-Replayed", *RATE)
START: Responses = {
    200: {**EVENTS, **sends(*STARTED, "Cache-Control")},
    202: sends(*STARTED),
    204: NO_EVENTS,
    **problems(
        ErrorCode.ATTACHMENT_NOT_STORED,
        ErrorCode.BUDGET_EXCEEDED,
        ErrorCode.CONVERSATION_BUSY,
        ErrorCode.IDEMPOTENCY_IN_FLIGHT,
        ErrorCode.IDEMPOTENCY_KEY_REQUIRED,
        ErrorCode.IDEMPOTENCY_KEY_REUSED,
        ErrorCode.INVALID_OPTION,
        ErrorCode.LIMIT_EXCEEDED,
        ErrorCode.UNKNOWN_AGENT,
        ErrorCode.UNPRICED_MODEL,
    ),
}
ESTIMATE: Responses = problems(ErrorCode.ATTACHMENT_NOT_STORED, ErrorCode.INVALID_OPTION, ErrorCode.UNKNOWN_AGENT)


@router.post("", status_code=202, response_model=RunView, responses=START)
async def start_run(
    body: NewRun,
    actor: Annotated[Actor, may(Permission.WRITE_CHAT)],
    session: TenantSession,
    settings: CurrentSettings,
    registry: CurrentRegistry,
    source: CurrentSource,
    links: ReaderLinks,
    limits: CurrentLimits,
    prices: CurrentPrices,
    open_streams: CurrentStreams,
    accept: Annotated[str, Header(include_in_schema=False)] = "application/json",
    idempotency_key: Key = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Start a run.

    202 and the run; with `Accept: text/event-stream` 200 and its events. Leaving does not stop the run. Without
    `conversation_id` it opens a conversation. An `Idempotency-Key` that was used before starts nothing: it gets the
    same reply, or the same run's events; `Last-Event-ID` without a key is refused, as its run cannot be found again.
    """
    require_key(idempotency_key, last_event_id)
    # Refused before it is started: who cannot follow a run should not pay for it.
    permit = limits.streams.acquire(actor.owner) if reader.MEDIA_TYPE in accept else None
    starting = Starting(session, source.broker, settings, registry, prices, actor, follows=permit is not None)
    answer = await service.start(starting, body, idempotency_key)
    if permit is None:
        return Response(answer.body, answer.status, answer.headers, media_type="application/json")
    run = tag_run(answer.run or await service.get(session, actor, answer.run_id))
    # A repeated request takes nothing of a plan's limits.
    held = open_streams.hold(answer.stream, permit) if answer.stream else permit
    return _events(source, links, held, run, last_event_id or 0, answer.headers)


@router.post("/estimate", responses=ESTIMATE)
async def estimate_run(
    body: NewRun,
    actor: Annotated[Actor, may(Permission.WRITE_CHAT)],
    session: TenantSession,
    settings: CurrentSettings,
    registry: CurrentRegistry,
    prices: CurrentPrices,
) -> RunEstimate:
    """Estimate what a run would cost.

    Nothing is started or counted. It refuses what a start refuses, but for limits.
    """
    return await estimates.estimate(session, settings, registry, prices, actor, body)


@router.get("")
async def list_runs(
    actor: Annotated[Actor, may(Permission.READ_CHAT)],
    session: TenantSession,
    query: Paging,
    conversation_id: ConversationId = None,
    status: Annotated[RunStatus | None, Query(description="Only these.")] = None,
) -> RunPage:
    """List runs.

    Newest first: the user's own, or those of a conversation that they may read.
    """
    statement = await service.listed(session, actor, conversation_id=conversation_id, status=status)
    rows, cursor = await fetch_page(session, statement, Run.id, query)
    return RunPage(data=[RunView.model_validate(row) for row in rows], next_cursor=cursor)


@router.get("/{run_id}")
async def get_run(run_id: RunId, actor: Annotated[Actor, may(Permission.READ_CHAT)], session: TenantSession) -> RunView:
    """Get a run.

    `error` is set where it failed, `usage` once it has ended.
    """
    return RunView.model_validate(tag_run(await service.get(session, actor, run_id)))


@router.get("/{run_id}/events", response_class=Response, responses=FOLLOW)
async def follow_run(
    run_id: RunId,
    actor: Annotated[Actor, may(Permission.READ_CHAT)],
    session: TenantSession,
    source: CurrentSource,
    links: ReaderLinks,
    limits: CurrentLimits,
    open_streams: CurrentStreams,
    last_event_id: LastEventId = None,
    after: After = 0,
) -> Response:
    """Follow a run's events.

    All events after `Last-Event-ID` (or `after`), live, to the terminal one: `run.completed`, `run.failed` or
    `run.cancelled`. Some hours after its end a run is replayed from what is kept: a short, complete list, numbered
    from 1. A connection that ends before the terminal event is to be opened again with `Last-Event-ID`.
    """
    run = tag_run(await service.get(session, actor, run_id))
    position = after if last_event_id is None else last_event_id
    permit = limits.streams.acquire(actor.owner)
    if not run.status.ended:
        permit = open_streams.hold(await admit_stream(session, actor, run), permit)
    return _events(source, links, permit, run, position, {"X-Run-Id": str(run.id)})


def _events(
    source: EventSource, links: Links, permit: Permit, run: Run, position: int, headers: dict[str, str]
) -> Response:
    if run.status.ended and position >= run.last_seq > 0:
        return Response(status_code=204, headers=headers)
    events = reader.frames(follow(source, run.tenant_id, run.id, position), links, permit)
    return StreamingResponse(events, media_type=reader.MEDIA_TYPE, headers={**reader.HEADERS, **headers})


@router.put("/{run_id}/cancellation", status_code=202)
async def cancel_run(
    run_id: RunId, actor: Annotated[Actor, may(Permission.WRITE_CHAT)], session: TenantSession, broker: CurrentBroker
) -> RunView:
    """Stop a run.

    Images that are finished stay. A run that has ended stays as it is.
    """
    return RunView.model_validate(tag_run(await service.cancel(session, broker, actor, run_id)))
