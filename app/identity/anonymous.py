"""The limit on requests that come without a credential, by the address they come from."""

import ipaddress
import logging
from typing import Annotated

from fastapi import Depends, Request

from app.broker import BROKER_UNAVAILABLE, Broker
from app.db import from_state
from app.errors import LimitExceeded
from app.identity.actor import CurrentSettings

log = logging.getLogger(__name__)

# What one customer of a network operator usually gets.
IPV6_PREFIX = 64


async def limit_anonymous(
    request: Request, settings: CurrentSettings, broker: Annotated[Broker, from_state("broker")]
) -> None:
    """For `dependencies=[LimitedByAddress]` of a route. While Redis is away nobody is refused."""
    allowed = settings.anonymous_requests_per_minute
    try:
        wait = await broker.buckets.take(f"anonymous:{_network_of(request)}", size=allowed, seconds=60)
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


def _network_of(request: Request) -> str:
    """The peer's address (behind `TRUSTED_PROXIES` the client's), of IPv6 its network."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or ipaddress.ip_network((address, IPV6_PREFIX), strict=False)
    return str(address)
