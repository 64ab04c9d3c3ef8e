"""Start a run, look at it, follow its events, stop it."""

import asyncio
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator

from app.agents._shared.registry import Registry
from app.attachments.links import Links, ReaderLinks
from app.broker import Broker
from app.db import Database, database
from app.errors import id_of
from app.identity.actor import ChatReader, ChatWriter, CurrentSettings, TenantSession
from app.runs import idempotency, service, sse
from app.runs.idempotency import visible_ascii
from app.runs.models import Run
from app.runs.reader import EventSource, follow
from app.runs.schemas import NewRun, RunView

router = APIRouter(prefix="/v1/runs", tags=["runs"])

RunId = Annotated[UUID, id_of("run")]
Key = Annotated[Annotated[str, AfterValidator(visible_ascii)] | None, Header(alias=idempotency.HEADER)]
LastEventId = Annotated[int | None, Header(ge=0)]
STREAM_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The run's events.", "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}}
}


def broker_of(request: Request) -> Broker:
    return cast(Broker, request.app.state.broker)


def registry_of(request: Request) -> Registry:
    return cast(Registry, request.app.state.registry)


CurrentBroker = Annotated[Broker, Depends(broker_of)]
CurrentRegistry = Annotated[Registry, Depends(registry_of)]


def event_source_of(
    request: Request, database: Annotated[Database, Depends(database, scope="function")], broker: CurrentBroker
) -> EventSource:
    return EventSource(database, broker, cast(asyncio.Event, request.app.state.draining))


CurrentSource = Annotated[EventSource, Depends(event_source_of)]


@router.post("", status_code=202, response_model=RunView, responses=STREAM_DOCS)
async def start_run(
    body: NewRun,
    actor: ChatWriter,
    session: TenantSession,
    settings: CurrentSettings,
    registry: CurrentRegistry,
    source: CurrentSource,
    links: ReaderLinks,
    accept: Annotated[str, Header()] = "application/json",
    idempotency_key: Key = None,
    last_event_id: LastEventId = None,
) -> Response:
    """202 and the run; with `Accept: text/event-stream` 200 and its events.

    An `Idempotency-Key` that was used before starts nothing: it gives the same answer, or the same run's events.
    """
    answer = await service.start(session, source.broker, settings, registry, actor, body, idempotency_key)
    if sse.MEDIA_TYPE in accept:
        run = await service.get(session, actor, answer.run_id)
        return _events(source, links, run, last_event_id or 0, answer.headers)
    return Response(answer.body, answer.status, answer.headers, media_type="application/json")


@router.get("/{run_id}")
async def get_run(run_id: RunId, actor: ChatReader, session: TenantSession) -> RunView:
    return RunView.model_validate(await service.get(session, actor, run_id))


@router.get("/{run_id}/events", response_class=Response, responses=STREAM_DOCS)
async def follow_run(
    run_id: RunId,
    actor: ChatReader,
    session: TenantSession,
    source: CurrentSource,
    links: ReaderLinks,
    last_event_id: LastEventId = None,
    after: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """The events past `Last-Event-ID` (or `?after=`), live; 204 where there are no more."""
    run = await service.get(session, actor, run_id)
    position = after if last_event_id is None else last_event_id
    return _events(source, links, run, position, {"X-Run-Id": str(run.id)})


def _events(source: EventSource, links: Links, run: Run, position: int, headers: dict[str, str]) -> Response:
    if run.status.ended and position >= run.last_seq > 0:
        return Response(status_code=204, headers=headers)
    events = sse.frames(follow(source, run.tenant_id, run.id, position), links)
    return StreamingResponse(events, media_type=sse.MEDIA_TYPE, headers={**sse.HEADERS, **headers})


@router.put("/{run_id}/cancellation", status_code=202)
async def cancel_run(run_id: RunId, actor: ChatWriter, session: TenantSession, broker: CurrentBroker) -> RunView:
    """Stop the run; images that are finished stay. A run that has ended answers as it is."""
    return RunView.model_validate(await service.cancel(session, broker, actor, run_id))
