"""What Alembic runs: with the connection that app.migrate hands over, or from its own command line by DATABASE_URL."""

import asyncio

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from app.attachments import models as attachments
from app.conversations import models as conversations
from app.db import Base
from app.erasure import models as erasure
from app.exports import models as exports
from app.identity import audit
from app.identity import models as identity
from app.migrate import open_for_migration
from app.runs import idempotency, provider_objects, streams
from app.runs import models as runs
from app.settings import load_settings
from app.usage import models as usage

MODELS = (
    identity,
    audit,
    conversations,
    runs,
    idempotency,
    attachments,
    usage,
    erasure,
    exports,
    provider_objects,
    streams,
)


def main() -> None:
    if context.is_offline_mode():
        raise CommandError("Migrations need a database: there is no --sql.")
    connection: Connection | None = context.config.attributes.get("connection")
    if connection is not None:
        run(connection)
    else:
        asyncio.run(run_by_settings())


async def run_by_settings() -> None:
    url = load_settings().database_url
    if url is None:
        raise CommandError("Set DATABASE_URL to a database that has been migrated.")
    async with open_for_migration(url.get_secret_value()) as connection:
        await connection.run_sync(run)


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


main()
