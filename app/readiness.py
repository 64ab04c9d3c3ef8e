"""Whether a process can do what it is there for."""

from app.broker import Broker
from app.db import Database
from app.error_codes import ErrorCode
from app.errors import Unavailable
from app.migrate import is_current


async def require_ready(database: Database, broker: Broker) -> None:
    """Raises Unavailable while the schema is behind, and what the database or the broker raises."""
    if not await is_current(database):
        raise Unavailable("The database's schema is behind: run `just migrate`.", code=ErrorCode.SCHEMA_BEHIND)
    await broker.ping()
