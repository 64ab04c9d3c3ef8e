"""What a refused start tells of the plan that nobody has read for it."""

import asyncio
from contextlib import asynccontextmanager
from uuid import UUID

from app.db import Database
from app.identity.actor import authenticate, bearer_of
from app.request_context import current_request
from app.usage import counters

_authenticated = asynccontextmanager(authenticate)


# A start that a hanging database has refused has waited for it already.
TELL_SECONDS = 1.0


async def tell_rate(database: Database, authorization: str, tenant_id: str) -> None:
    """How many runs the caller of these headers may start; nothing where that is unlimited, unknown or told already.

    It goes into the headers of the answer to the present request.
    """
    if current_request().headers:
        return
    try:
        tenant = UUID(tenant_id) if tenant_id else None
        async with (
            asyncio.timeout(TELL_SECONDS),
            _authenticated(database, bearer_of(authorization), tenant) as found,
        ):
            await counters.read_rate(found.session, found.actor)
    except Exception:
        # What refused the start is told, whatever refuses this.
        return
