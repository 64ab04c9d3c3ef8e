"""What the routes of runs are given: parameters, and what the process holds open."""

import asyncio
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Header, Query, Request
from pydantic import AfterValidator

from app.agents._shared.registry import Registry
from app.broker import Broker
from app.db import CurrentDatabase, from_state
from app.errors import id_of
from app.identity.actor import Bearer
from app.runs import idempotency
from app.runs.access import AccessWatch
from app.runs.direct import deliver_to
from app.runs.idempotency import visible_ascii
from app.runs.reader import EventSource
from app.runs.streams import OpenStreams
from app.usage.prices import Prices

RunId = Annotated[UUID, id_of("run")]
ConversationId = Annotated[Annotated[UUID, id_of("conversation")] | None, Query(description="Only this one's runs.")]
Key = Annotated[
    Annotated[str, AfterValidator(visible_ascii)] | None,
    Header(alias=idempotency.HEADER, description="Makes the request safe to repeat for 24 hours."),
]
# Redis takes no larger number for a position in a stream.
MAX_SEQ = 2**63 - 1
LastEventId = Annotated[
    int | None,
    Header(ge=0, le=MAX_SEQ, alias="Last-Event-ID", description="The `seq` of the last event that arrived."),
]
After = Annotated[int, Query(ge=0, le=MAX_SEQ, description="`Last-Event-ID` for clients that cannot send it.")]

CurrentBroker = Annotated[Broker, from_state("broker")]
CurrentRegistry = Annotated[Registry, from_state("registry")]
CurrentPrices = Annotated[Prices, from_state("prices")]
CurrentStreams = Annotated[OpenStreams, from_state("streams")]
Draining = Annotated[asyncio.Event, from_state("draining")]


async def event_source_of(
    request: Request,
    bearer: Bearer,
    database: CurrentDatabase,
    broker: CurrentBroker,
    draining: Draining,
    watch: Annotated[AccessWatch, from_state("access_watch")],
) -> EventSource:
    credential = bearer.credentials if bearer else ""
    return EventSource(database, broker, draining, deliver_to(request.scope), credential, watch)


CurrentSource = Annotated[EventSource, Depends(event_source_of)]
