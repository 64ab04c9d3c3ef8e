"""What every serving process holds open: database, broker and store."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from app.broker import Broker, open_broker
from app.db import Database
from app.logins import require_limited_login
from app.settings import Settings
from app.storage.service import open_store
from app.storage.store import Store


@dataclass(frozen=True)
class Connections:
    database: Database
    broker: Broker
    store: Store


@asynccontextmanager
async def open_connections(settings: Settings, database_url: str) -> AsyncGenerator[Connections]:
    """Closed again in reverse with the block."""
    async with AsyncExitStack() as stack:
        database = Database(database_url, pool_size=settings.database_pool_size)
        stack.push_async_callback(database.close)
        await _reach(database)
        if settings.production:
            await require_limited_login(database)
        store = open_store(settings)
        stack.push_async_callback(store.close)
        await store.prepare(create_bucket=not settings.production)
        broker = await stack.enter_async_context(open_broker(settings))
        await broker.ping()
        yield Connections(database, broker, store)


async def _reach(database: Database) -> None:
    """A process that starts without its database would do nothing but log so: its command says why, and ends."""
    async with database.probe.connect():
        pass
