"""Start a run, look at it, stream its events, stop it."""

import asyncio
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator

from app.agents._shared.registry import Registry
from app.attachments.links import ReaderLinks
from app.broker import Broker
from app.db import Database, after_commit, database
from app.errors import id_of
from app.identity.actor import ChatReader, ChatWriter, CurrentSettings, TenantSession
from app.runs import idempotency, service, tasks
from app.runs.idempotency import Answer, visible_ascii
from app.runs.models import Run
from app.runs.schemas import NewRun, RunView
from app.runs.stream import HEADERS, Source, frames

router = APIRouter(prefix="/v1/runs", tags=["runs"])

RunId = Annotated[UUID, id_of("run")]
START = "POST /v1/runs"
"""The route's name in idempotency keys."""
Key = Annotated[Annotated[str, AfterValidator(visible_ascii)] | None, Header(alias=idempotency.HEADER)]
LastEventId = Annotated[int | None, Header(ge=0)]
EVENT_STREAM = "text/event-stream"
STREAM_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The run's events.", "content": {EVENT_STREAM: {"schema": {"type": "string"}}}}
}


def broker_of(request: Request) -> Broker:
    return cast(Broker, request.app.state.broker)


def registry_of(request: Request) -> Registry:
    return cast(Registry, request.app.state.registry)


CurrentBroker = Annotated[Broker, Depends(broker_of)]
CurrentRegistry = Annotated[Registry, Depends(registry_of)]


def source_of(
    request: Request,
    database: Annotated[Database, Depends(database, scope="function")],
    broker: CurrentBroker,
    links: ReaderLinks,
) -> Source:
    return Source(database, broker, links, cast(asyncio.Event, request.app.state.draining))


@router.post("", status_code=202, response_model=RunView, responses=STREAM_DOCS)
async def start_run(
    body: NewRun,
    actor: ChatWriter,
    session: TenantSession,
    settings: CurrentSettings,
    registry: CurrentRegistry,
    source: Annotated[Source, Depends(source_of)],
    accept: Annotated[str, Header()] = "application/json",
    idempotency_key: Key = None,
    last_event_id: LastEventId = None,
) -> Response:
    """202 and the run; with `Accept: text/event-stream` 200 and its events.

    An `Idempotency-Key` that was used before starts nothing: it gives the same answer, or the same run's events.
    """
    answer = await idempotency.recall(session, actor, START, idempotency_key, body)
    if answer is None:
        run = await service.create(session, source.broker, settings, registry, actor, body)
        view = RunView.model_validate(run)
        after_commit(session, lambda: tasks.launch(source.broker, actor.tenant_id, view))
        headers = {"Location": f"/v1/runs/{run.id}", "X-Run-Id": str(run.id)}
        answer = Answer(run.id, 202, headers, view.model_dump_json())
        await idempotency.remember(session, actor, START, idempotency_key, body, answer)
    if EVENT_STREAM in accept:
        run = await service.get(session, actor, answer.run_id)
        return await _events(source, run, last_event_id or 0, answer.headers)
    return Response(answer.body, answer.status, answer.headers, media_type="application/json")


@router.get("/{run_id}")
async def get_run(run_id: RunId, actor: ChatReader, session: TenantSession) -> RunView:
    return RunView.model_validate(await service.get(session, actor, run_id))


@router.get("/{run_id}/events", response_class=Response, responses=STREAM_DOCS)
async def stream_run(
    run_id: RunId,
    actor: ChatReader,
    session: TenantSession,
    source: Annotated[Source, Depends(source_of)],
    last_event_id: LastEventId = None,
    after: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """The events past `Last-Event-ID` (or `?after=`), live; 204 where there are no more."""
    run = await service.get(session, actor, run_id)
    position = after if last_event_id is None else last_event_id
    return await _events(source, run, position, {"X-Run-Id": str(run.id)})


async def _events(source: Source, run: Run, position: int, headers: dict[str, str]) -> Response:
    if run.status.ended and position >= run.last_seq > 0:
        return Response(status_code=204, headers=headers)
    events = frames(source, run.tenant_id, run.id, position)
    return StreamingResponse(events, media_type=EVENT_STREAM, headers={**HEADERS, **headers})


@router.put("/{run_id}/cancellation", status_code=202)
async def cancel_run(run_id: RunId, actor: ChatWriter, session: TenantSession, broker: CurrentBroker) -> RunView:
    """Stop the run; pictures that are finished stay. A run that has ended answers as it is."""
    return RunView.model_validate(await service.cancel(session, broker, actor, run_id))
