"""The request at hand: its id and its client's address, for what is written down about it; headers of its answer."""

import ipaddress
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

# What one customer of a network operator usually gets.
IPV6_PREFIX = 64


@dataclass(frozen=True)
class RequestContext:
    """`ip` is the peer's address, behind `TRUSTED_PROXIES` the client's; both are None outside of requests.

    `headers` are sent with the answer, whatever that will be.
    """

    request_id: str | None = None
    ip: str | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def network(self) -> str:
        """The address, of IPv6 its network: what limits are counted by."""
        try:
            address = ipaddress.ip_address(self.ip or "")
        except ValueError:
            return self.ip or ""
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or ipaddress.ip_network((address, IPV6_PREFIX), strict=False)
        return str(address)


_context: ContextVar[RequestContext] = ContextVar("request_context", default=RequestContext())  # noqa: B039 - frozen


@contextmanager
def in_request(context: RequestContext) -> Generator[None]:
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def current_request() -> RequestContext:
    return _context.get()
