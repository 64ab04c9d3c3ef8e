"""The limit on requests that come without a credential, by the address they come from."""

import logging
from typing import Annotated

from fastapi import Depends

from app.broker import BROKER_UNAVAILABLE, Broker
from app.db import from_state
from app.errors import LimitExceeded
from app.identity.actor import CurrentSettings
from app.request_context import current_request

log = logging.getLogger(__name__)


async def limit_anonymous(settings: CurrentSettings, broker: Annotated[Broker, from_state("broker")]) -> None:
    """For `dependencies=[LimitedByAddress]` of a route. While Redis is away nobody is refused."""
    allowed = settings.anonymous_requests_per_minute
    try:
        wait = await broker.buckets.take(f"anonymous:{current_request().network}", size=allowed, seconds=60)
    except BROKER_UNAVAILABLE as error:
        log.warning("limit.not_counted", extra={"error": type(error).__name__})
        return
    if wait:
        raise LimitExceeded(
            "Too many requests come from your address: try again in a moment.",
            limit="anonymous_requests_per_minute",
            scope="address",
            allowed=allowed,
            retry_after=wait,
        )


LimitedByAddress = Depends(limit_anonymous)
