"""What a refused start tells of the plan that nobody has read for it."""

from contextlib import asynccontextmanager
from uuid import UUID

from starlette.requests import Request
from starlette.types import Scope

from app.identity.actor import authenticate, bearer_of
from app.request_context import current_request
from app.usage import counters

authenticated = asynccontextmanager(authenticate)


async def tell_rate(scope: Scope) -> None:
    """How many runs the caller may start, in the headers of the answer; nothing where that is unlimited or unknown."""
    request = Request(scope)
    if current_request().headers or (bearer := await bearer_of(request)) is None:
        return
    try:
        tenant_id = UUID(asked) if (asked := request.headers.get("x-tenant-id")) else None
        async with authenticated(request.app.state.database, bearer, tenant_id) as found:
            await counters.read_rate(found.session, found.actor)
    except Exception:
        # What refused the start is told, whatever refuses this.
        return
