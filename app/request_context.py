"""The request at hand: its id and its client's address, for what is written down about it; headers of its answer."""

import ipaddress
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from app.db import uuid7

Headers = Sequence[tuple[bytes, bytes]]

# What one customer of a network operator usually gets.
IPV6_PREFIX = 64

# What gateways send: UUIDs, ULIDs, hexadecimal digits, with or without a prefix.
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:=+/@-]{0,127}").fullmatch
# A credential that was sent by mistake would stand in the log: Easel's own, a provider's key, a JSON web token.
_CREDENTIAL = re.compile(r"easel_[a-z]{2}_|\bsk-|eyJ[A-Za-z0-9]").search
# https://www.w3.org/TR/trace-context/#traceparent-header; versions after 00 may append fields.
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?"
).fullmatch
TRACEPARENT_CHARACTERS = 55


@dataclass(frozen=True)
class RequestContext:
    """`ip` is the peer's address, behind `TRUSTED_PROXIES` the client's; both are None outside of requests.

    `traceparent` is the caller's (W3C Trace Context), where one came. `headers` are sent with the answer, whatever that
    will be.
    """

    request_id: str | None = None
    ip: str | None = None
    traceparent: str | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, headers: Headers, client: tuple[str, int] | None) -> "RequestContext":
        """The id is the caller's `X-Request-Id`, else that of the caller's trace, else a new one."""
        traceparent = _well_formed_traceparent(_only(headers, b"traceparent"))
        request_id = _well_formed_id(_only(headers, b"x-request-id"))
        return cls(request_id or trace_id_of(traceparent) or str(uuid7()), client and _address(client[0]), traceparent)

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


def trace_id_of(traceparent: str | None) -> str | None:
    return traceparent.split("-")[1] if traceparent else None


def _only(headers: Headers, wanted: bytes) -> str:
    """Empty where it came twice: nobody knows which is meant."""
    values = [value for name, value in headers if name == wanted]
    return values[0].decode("latin-1") if len(values) == 1 else ""


def _well_formed_id(given: str) -> str | None:
    return given if _REQUEST_ID(given) and not _CREDENTIAL(given) else None


def _well_formed_traceparent(given: str) -> str | None:
    """As version 00, which every version begins like."""
    found = _TRACEPARENT(given)
    if found is None or (found[1] == "00" and found["more"]):
        return None
    return f"00{given[2:TRACEPARENT_CHARACTERS]}"


def _address(given: object) -> str | None:
    """None for what a proxy passed on and is none."""
    try:
        return str(ipaddress.ip_address(str(given)))
    except ValueError:
        return None


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
